"""Finds Chromium for the browser tests (`browser()`); as a script (`python tests/browser.py`) it makes sure that there is one."""
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ARGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync',
        '--no-first-run', '--disable-dev-shm-usage']
HIDDEN = ['--hide-scrollbars']  # what playwright would add: people see scrollbars, so the tests do
NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'microsoft-edge'
MISSING = 'no Chromium was found: install it (Debian: apt-get install chromium), or set MISAS_CHROMIUM to the program of a Chromium or Chrome'


def browser():
    "Path of a Chromium or Chrome: the one that MISAS_CHROMIUM names, else one on the PATH, else playwright's own; None where there is none."
    named = os.environ.get('MISAS_CHROMIUM')
    if named:
        if shutil.which(named) is None: raise FileNotFoundError(f'MISAS_CHROMIUM={named}: there is no such program')
        return shutil.which(named)
    return next(filter(None, map(shutil.which, NAMES)), None) or _playwrights()


def _playwrights():
    "The browser that `playwright install chromium` brings; in a process of its own, as playwright cannot be started twice in one."
    code = 'from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    path = done.stdout.strip()
    return path if done.returncode == 0 and Path(path).is_file() else None


@contextmanager
def chromium():
    "A running Chromium (playwright's Browser), closed at the end. RuntimeError where none is found."
    from playwright.sync_api import sync_playwright
    path = browser()
    if path is None: raise RuntimeError(MISSING)
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=path, args=ARGS, ignore_default_args=HIDDEN)
        try: yield running
        finally: running.close()


def install():
    "Try to get a Chromium: from Debian when root, else from playwright."
    if hasattr(os, 'geteuid') and os.geteuid() == 0 and shutil.which('apt-get'):
        for what in (['update'], ['install', '-y', '--no-install-recommends', 'chromium']): subprocess.run(['apt-get', *what])
    if browser() is None: subprocess.run([sys.executable, '-m', 'playwright', 'install', 'chromium'])


if __name__ == '__main__':
    if browser() is None: install()
    if (found := browser()) is None: sys.exit(MISSING)
    print(found)
