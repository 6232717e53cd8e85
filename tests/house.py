"""Measures the house: long lines, lambdas, one-letter names, complexity, runs without an example, annotations.

    python tests/house.py [PREFIX ...]   a table of the rooms, and what exceeds the rules (in `data`, `models.base`, ...)

It needs the standard library only, and reads files: nothing is imported.
"""
import argparse
import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT/'nbs').is_dir(): ROOT = Path.cwd()  # a copy of this file measures the folder it is started in
NBS, PACKAGE = ROOT/'nbs', ROOT/'misas'

WIDTHS = 100, 120, 140
ALLOWED = set('xkij_')      # one-letter names that may live as long as they like
IN_A_LOOP = set('ntsqm')    # those that may name the item of a loop of at most TIGHT lines
TIGHT = 3
MOST_COMPLEX = 12
RULES = {  # name of a rule -> (the number it allows a module or notebook, what is counted)
    'lines': (0, 'lines of code over 120 characters'),
    'run': (80, 'exported lines in a row without a visible example'),
    'complex': (0, f'functions of a complexity over {MOST_COMPLEX}'),
    'named lambdas': (0, 'lambdas bound to a name: write def'),
    'one letter': (0, f'one-letter names that live longer than a comprehension (other than {" ".join(sorted(ALLOWED))})'),
    'not annotated': (0, 'arguments and returns of public names without an annotation'),
    'patched on': (0, 'methods given to a class from another module than its own'),
}


@dataclass
class Measured:
    "What was counted of a module and its notebook, or of a notebook alone."
    key: str  # 'data.sample', 'tutorials.explore'
    notebook: Path | None = None
    module: Path | None = None
    widths: list = field(default_factory=list)           # of the module's lines
    notebook_widths: list = field(default_factory=list)  # of the lines of all code cells
    exported: int = 0
    run: int = 0
    lambdas: int = 0
    complexities: list = field(default_factory=list)
    offenders: dict = field(default_factory=lambda: {o: [] for o in RULES})  # rule -> sentences

    @property
    def room(self): return self.key.split('.')[0] if '.' in self.key else '(root)'

    @property
    def counts(self):
        return {rule: self.run if rule == 'run' else len(found) for rule, found in self.offenders.items()}


# ---- files ----

def source(cell): return ''.join(cell['source'])


def notebooks():
    return sorted(o for o in NBS.rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(NBS).parts))


def cells_of(notebook): return json.loads(notebook.read_text(encoding='utf-8'))['cells']


def module_of(cells):
    "The module that a notebook exports ('data.sample'), or None."
    for cell in cells:
        if found := re.search(r'^#\|\s*default_exp\s+(\S+)', source(cell), re.M): return found[1]
    return None


def path_of(module): return PACKAGE.joinpath(*module.split('.')).with_suffix('.py')


# ---- a notebook's cells ----

def has(directive, text): return re.search(rf'^#\|\s*{directive}\b', text, re.M) is not None


def code_lines(text): return [line for line in text.splitlines() if line.strip() and not line.startswith('#|')]


def teaches(text):
    "Is this code cell an example that readers see? Imports alone are none."
    hidden = has('hide', text) or has('include: false', text)
    lines = [line for line in code_lines(text) if not re.match(r'(import|from) |#|%', line)]
    return bool(lines) and not hidden and not has('export', text)


def measure_notebook(notebook, cells, into):
    "Counts long lines of all code cells, and exported lines in a row without an example between them."
    run, start = 0, 0
    for number, cell in enumerate(cells):
        if cell['cell_type'] != 'code': continue
        text = source(cell)
        for line in code_lines(text):
            into.notebook_widths.append(len(line))
            if len(line) > WIDTHS[1]: into.offenders['lines'].append(f'cell {number}, {len(line)}: {line.strip()[:60]}')
        if has('exports?i?', text):
            if run == 0: start = number
            run += len(code_lines(text))
            into.exported += len(code_lines(text))
        elif teaches(text): run = 0
        if run > into.run: into.run, longest = run, f'{run} lines from cell {start} to cell {number}'
    if into.run > RULES['run'][0]: into.offenders['run'].append(longest)


# ---- a module's functions ----

FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp


def functions(tree, inside=''):
    "(name, node) of every function of a module, methods and nested ones too."
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (*FUNCTIONS, ast.ClassDef))
        name = f'{inside}.{node.name}'.strip('.') if named else inside
        if isinstance(node, FUNCTIONS): yield name, node
        yield from functions(node, name)


def own_nodes(function):
    "The nodes of a function's body without those of the functions and classes within it."
    todo = [*function.body]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)): todo.extend(ast.iter_child_nodes(node))


def branches(node):
    "By how much a node raises the cyclomatic complexity, as radon counts it (`with` adds nothing)."
    if isinstance(node, (ast.If, ast.IfExp, ast.Assert, ast.ExceptHandler)): return 1
    if isinstance(node, (ast.For, ast.AsyncFor, ast.While)): return 1 + bool(node.orelse)
    if isinstance(node, ast.Try): return int(bool(node.orelse))
    if isinstance(node, ast.BoolOp): return len(node.values) - 1
    if isinstance(node, ast.comprehension): return 1 + len(node.ifs)
    if isinstance(node, ast.match_case): return 1
    return 0


def complexity(function): return 1 + sum(map(branches, own_nodes(function)))


def of_comprehensions(function):
    "Ids of the name nodes that belong to a comprehension (its targets) or to a lambda."
    found = set()
    for node in own_nodes(function):
        if isinstance(node, COMPREHENSIONS):
            for part in node.generators: found |= {id(o) for o in ast.walk(part.target)}
    return found


def of_tight_loops(function):
    "Ids of the name nodes that are items of a short loop and may have one letter."
    found = set()
    for node in own_nodes(function):
        if isinstance(node, (ast.For, ast.AsyncFor)) and node.end_lineno - node.lineno < TIGHT:
            found |= {id(o) for o in ast.walk(node.target) if isinstance(o, ast.Name) and o.id in IN_A_LOOP}
    return found


def one_letter(function):
    "{name: line} of one-letter names assigned in a function, outside comprehensions."
    free = of_comprehensions(function) | of_tight_loops(function)
    found = {}
    for node in own_nodes(function):
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        if stored and len(node.id) == 1 and node.id not in ALLOWED and id(node) not in free:
            found[node.id] = min(node.lineno, found.get(node.id, node.lineno))
    return found


def is_lambda(node):
    "A lambda, or a choice between values of which one is a lambda."
    if isinstance(node, ast.IfExp): return is_lambda(node.body) or is_lambda(node.orelse)
    if isinstance(node, ast.BoolOp): return any(map(is_lambda, node.values))
    return isinstance(node, ast.Lambda)


def bound_values(node):
    "(target, value) pairs of an assignment."
    if isinstance(node, ast.Assign): pairs = [(o, node.value) for o in node.targets]
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)): pairs = [(node.target, node.value)]
    else: return
    for target, value in pairs:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple): yield from zip(target.elts, value.elts)
        else: yield target, value


def named_lambdas(tree):
    "(name, line) of lambdas bound to a name."
    for node in ast.walk(tree):
        for target, value in bound_values(node):
            if isinstance(target, ast.Name) and is_lambda(value): yield target.id, value.lineno


def foreign_methods(tree):
    "(what, line) of methods and attributes that a module gives to classes of other modules."
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    for name, function in functions(tree):
        of_class = patched_class(function)
        if of_class and of_class not in own: yield f'{of_class}.{name}', function.lineno
    for node in ast.walk(tree):
        targets = [target for target, _ in bound_values(node)]
        if isinstance(node, ast.Call) and called(node) == 'setattr': targets = [ast.Attribute(node.args[0], '...')]
        for target in targets:
            if isinstance(target, ast.Attribute) and is_foreign_class(target.value, imported):
                yield ast.unparse(target), node.lineno


def is_foreign_class(node, imported):
    "Is this the name of a class that the module imported?  (Classes are Capitalised.)"
    name = ast.unparse(node)
    return name.split('.')[0] in imported and name.split('.')[-1][:1].isupper()


def measure_module(path, into):
    text = path.read_text(encoding='utf-8')
    tree = ast.parse(text)
    into.widths = [len(line) for line in text.splitlines() if line.strip()]
    into.lambdas = sum(isinstance(node, ast.Lambda) for node in ast.walk(tree))
    into.offenders['named lambdas'] += [f'line {line}: {name} = lambda' for name, line in named_lambdas(tree)]
    into.offenders['patched on'] += [f'line {line}: {name}' for name, line in foreign_methods(tree)]
    for name, function in functions(tree):
        size = complexity(function)
        into.complexities.append(size)
        if size > MOST_COMPLEX: into.offenders['complex'].append(f'line {function.lineno}: {name} {size}')
        letters = one_letter(function)
        into.offenders['one letter'] += [f'line {line}: {letter} in {name}' for letter, line in letters.items()]


# ---- public names ----

def public_names():
    "{module: names of it that misas.all holds, or None: the whole module is there}"
    found = {}
    if not (PACKAGE/'all.py').exists(): return found
    for node in ast.parse((PACKAGE/'all.py').read_text(encoding='utf-8')).body:
        if not isinstance(node, ast.ImportFrom) or not node.level: continue
        for alias in node.names:
            inner = f'{node.module}.{alias.name}'.removeprefix('None.')
            if path_of(inner).exists(): found[inner] = None
            elif found.setdefault(node.module, set()) is not None: found[node.module].add(alias.name)
    return found


def called(decorator):
    "The name of what is called, or of a decorator: 'patch' of @patch and of @patch(as_prop=True)."
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def patched_class(function):
    "The class that a function with @patch is a method of, or None."
    if not any(called(o) == 'patch' for o in function.decorator_list): return None
    first = [*function.args.posonlyargs, *function.args.args][:1]
    return ast.unparse(first[0].annotation).strip('\'"') if first and first[0].annotation else None


def is_public(method): return not method.startswith('_') or method in ('__init__', '__call__')


def public_functions(tree, names):
    "(name, node, is it a method?) of what `names` (None: all public ones) lets people call."
    def wanted(name): return not name.startswith('_') if names is None else name in names
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and wanted(node.name):
            methods = [o for o in node.body if isinstance(o, FUNCTIONS) and is_public(o.name)]
            yield from ((f'{node.name}.{o.name}', o, True) for o in methods)
        if not isinstance(node, FUNCTIONS): continue
        of_class = patched_class(node)
        if of_class is None and wanted(node.name): yield node.name, node, False
        if of_class and wanted(of_class) and is_public(node.name): yield f'{of_class}.{node.name}', node, True


def unannotated(function, method):
    "Arguments of a function that have no annotation, and 'return'."
    args = function.args
    listed = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    static = any(called(o) == 'staticmethod' for o in function.decorator_list)
    if method and not static: listed = listed[1:]
    missing = [o.arg for o in listed if o is not None and o.annotation is None]
    if function.returns is None and function.name != '__init__': missing.append('return')
    return missing


def measure_annotations(path, names, into):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for name, function, method in public_functions(tree, names):
        into.offenders['not annotated'] += [f'line {function.lineno}: {name}: {o}' for o in unannotated(function, method)]


# ---- all of it ----

def measure():
    "{key: Measured} of every module and notebook."
    res = {}
    for notebook in notebooks():
        cells = cells_of(notebook)
        module = module_of(cells)
        key = module or '.'.join(notebook.relative_to(NBS).with_suffix('').parts)
        res[key] = Measured(key, notebook)
        measure_notebook(notebook, cells, res[key])
    for path in sorted(PACKAGE.rglob('*.py')):
        key = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        if path.stem in ('__init__', '_modidx'): continue
        one = res.setdefault(key, Measured(key))
        one.module = path
        measure_module(path, one)
    for module, names in public_names().items():
        if module in res: measure_annotations(path_of(module), names, res[module])
    return res


def table(measured):
    "Lines of text: what was counted in each room."
    heads = ['modules', 'lines', '>100', '>120', '>140', 'nb>100', 'nb>120', 'nb>140', 'lambda', 'named', 'letter',
             'cx>10', 'cx>12', 'cx max', 'exported', 'run>80', 'run max', 'untyped', 'patched']
    rooms = {}
    for one in measured: rooms.setdefault(one.room, []).append(one)
    rooms['all'] = measured
    yield f'{"room":14}' + ''.join(f'{o:>9}' for o in heads)
    for room, those in rooms.items():
        yield f'{room:14}' + ''.join(f'{o:9}' for o in row(those))


def row(those):
    widths = [w for one in those for w in one.widths]
    cells = [w for one in those for w in one.notebook_widths]
    sizes = [c for one in those for c in one.complexities]

    def over(numbers, limit): return sum(o > limit for o in numbers)

    def count(rule): return sum(len(one.offenders[rule]) for one in those)

    return [sum(one.module is not None for one in those), len(widths), *(over(widths, w) for w in WIDTHS),
            *(over(cells, w) for w in WIDTHS), sum(one.lambdas for one in those), count('named lambdas'), count('one letter'),
            over(sizes, 10), over(sizes, MOST_COMPLEX), max(sizes, default=0), sum(one.exported for one in those),
            count('run'), max((one.run for one in those), default=0), count('not annotated'), count('patched on')]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('prefix', nargs='*', help='modules and notebooks to show: data, models.base, tutorials (default: all)')
    parser.add_argument('--short', action='store_true', help='the table only')
    args = parser.parse_args()
    measured = measure()
    shown = [one for key, one in sorted(measured.items())
             if not args.prefix or any(key == o or key.startswith(o.rstrip('.') + '.') for o in args.prefix)]
    print('\n'.join(table(shown)))
    for one in [] if args.short else shown:
        found = [(rule, o) for rule, offenders in one.offenders.items() for o in offenders]
        if found: print(f'\n{one.key}: {one.exported} exported lines')
        for rule, offender in found: print(f'  {rule:14} {offender}')


if __name__ == '__main__': main()
