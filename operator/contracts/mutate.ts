/**
 * Are the tests worth anything? Each guard, cap, branch and statement of LeaseEscrow is taken out, one at a time, and some
 * test must notice. Found in the syntax tree that the compiler makes.
 *
 * All mutants are compiled at once: each is a piece of code that changes what it stands at when `block.coinbase` is the
 * mutant's number, and forge is told the coinbase for each run. So there is one compilation, and a second or two a mutant.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { build, contractsFolder, copyProject, runForge } from './forge.ts';

export interface Mutant {
  /** Beginning with 1; 0 is the contract as it is. */
  readonly number: number;
  readonly line: number;
  /** The same as long as the code is: `function: change: text`, and a count if that is there more than once. */
  readonly id: string;
}

export interface Mutation {
  readonly verdicts: readonly Verdict[];
  /** Equivalents that are no mutants: left over from code that was changed. */
  readonly unknown: readonly string[];
}

export interface Verdict extends Mutant {
  /** The test that failed; undefined when none did. */
  readonly killedBy: string | undefined;
}

/** Mutants that no test can tell from the contract, each with the reason. By id. */
export type Equivalents = Readonly<Record<string, string>>;

interface Insertion {
  readonly at: number;
  readonly text: string;
  /** Bytes of what it belongs to: of insertions at one place, the outer ones open first and close last. */
  readonly size: number;
  readonly opens: boolean;
}

interface AstNode {
  readonly nodeType: string;
  readonly src: string;
  readonly [member: string]: unknown;
}

const relations: Readonly<Record<string, string>> = { '<': '<=', '<=': '<', '>': '>=', '>=': '>' };

/** What stands in the copy beside the contract: which mutant it is, and modifiers that one of them lacks. */
const preamble = `
function mutant(uint256 number) view returns (bool) {
    return uint160(address(block.coinbase)) == number;
}
`;
const members = `
    modifier nonReentrantUnless(uint256 number) {
        bytes32 slot = _reentrancyGuardStorageSlot();
        if (!mutant(number)) {
            if (_reentrancyGuardEntered()) revert ReentrancyGuardReentrantCall();
            assembly { tstore(slot, 1) }
        }
        _;
        if (!mutant(number)) {
            assembly { tstore(slot, 0) }
        }
    }

    modifier onlyOwnerUnless(uint256 number) {
        if (!mutant(number)) _checkOwner();
        _;
    }
`;

/** The source with all mutants in it, asleep. */
export function plant(source: string, ast: AstNode): { source: string; mutants: Mutant[] } {
  const bytes = Buffer.from(source);
  const mutants: Mutant[] = [];
  const insertions: Insertion[] = [];
  const ids = new Map<string, number>();
  const span = (node: AstNode): readonly [from: number, to: number] => {
    const [from, length] = node.src.split(':').map(Number);
    return [from!, from! + length!];
  };
  const textOf = (node: AstNode) => bytes.subarray(...span(node)).toString();

  function add(
    where: string,
    node: AstNode,
    change: string,
    wrap: (number: number) => readonly [string, string],
  ): void {
    const number = mutants.length + 1;
    const name = `${where}: ${change}: ${textOf(node).replace(/\s+/g, ' ')}`;
    const count = (ids.get(name) ?? 0) + 1;
    ids.set(name, count);
    const [from, until] = span(node);
    // A statement's range may end before its semicolon.
    const to = node.nodeType.endsWith('Statement') && bytes[until] === 0x3b ? until + 1 : until;
    const line = bytes.subarray(0, from).toString().split('\n').length;
    mutants.push({ number, line, id: count === 1 ? name : `${name} (${count})` });
    const [before, after] = wrap(number);
    insertions.push({ at: from, text: before, size: to - from, opens: true });
    insertions.push({ at: to, text: after, size: to - from, opens: false });
  }

  const looked = new Set<AstNode>();
  function condition(where: string, node: AstNode, guard: boolean): void {
    looked.add(node);
    const { operator, leftExpression, rightExpression } = node as AstNode & {
      operator?: string;
      leftExpression: AstNode;
      rightExpression: AstNode;
    };
    if (node.nodeType === 'BinaryOperation' && (operator === '||' || operator === '&&')) {
      condition(where, leftExpression, guard);
      condition(where, rightExpression, guard);
      return;
    }
    add(where, node, 'never', (n) => [`(!mutant(${n}) && (`, '))']);
    // A guard that always refuses is noticed by everything.
    if (!guard) add(where, node, 'always', (n) => [`(mutant(${n}) || (`, '))']);
  }

  function visit(where: string, node: AstNode): void {
    switch (node.nodeType) {
      case 'ModifierInvocation': {
        const name = textOf(node);
        if (name === 'nonReentrant' || name === 'onlyOwner') add(where, node, 'without', (n) => ['', `Unless(${n})`]);
        return;
      }
      case 'IfStatement': {
        const body = node.trueBody as AstNode & { statements?: readonly AstNode[] };
        const only = body.nodeType === 'Block' && body.statements?.length === 1 ? body.statements[0]! : body;
        condition(where, node.condition as AstNode, only.nodeType === 'RevertStatement');
        break;
      }
      case 'Conditional':
        condition(where, node.condition as AstNode, false);
        break;
      case 'BinaryOperation': {
        if ((node.operator === '||' || node.operator === '&&') && !looked.has(node)) condition(where, node, false);
        const [left, right] = [textOf(node.leftExpression as AstNode), textOf(node.rightExpression as AstNode)];
        const other = relations[node.operator as string];
        if (other) add(where, node, `as ${other}`, (n) => [`(mutant(${n}) ? (${left} ${other} ${right}) : (`, '))']);
        break;
      }
      case 'FunctionCall': {
        const called = node.expression as AstNode;
        if (called.nodeType === 'Identifier' && called.name === '_min') {
          const [one, other] = (node.arguments as readonly AstNode[]).map(textOf);
          add(where, node, 'first of', (n) => [`(mutant(${n}) ? (${one}) : `, ')']);
          add(where, node, 'second of', (n) => [`(mutant(${n}) ? (${other}) : `, ')']);
        }
        break;
      }
      case 'ExpressionStatement':
      case 'EmitStatement':
      case 'TryStatement':
        add(where, node, 'without', (n) => [`{ if (!mutant(${n})) { `, ' } }']);
        break;
      case 'ForStatement':
        visit(where, node.body as AstNode);
        return;
    }
    for (const [member, value] of Object.entries(node)) {
      for (const child of Array.isArray(value) ? value : [value]) {
        if (child !== null && typeof child === 'object' && 'nodeType' in child) {
          if (member !== 'documentation') visit(where, child as AstNode);
        }
      }
    }
  }

  const contract = (ast.nodes as readonly AstNode[]).find((node) => node.nodeType === 'ContractDefinition')!;
  const functions = (contract.nodes as readonly AstNode[]).filter((node) => node.nodeType === 'FunctionDefinition');
  const isPure = (node: AstNode) => node.stateMutability === 'pure';
  const calledByPure = functions
    .filter((node) => isPure(node) && node.visibility === 'external')
    .map(textOf)
    .join();
  for (const node of functions) {
    const name = (node.name as string) || (node.kind as string);
    if (isPure(node)) {
      // What is pure cannot look who it is. Private functions need not be; outside nobody sees the difference.
      if (node.visibility !== 'private' || calledByPure.includes(`${name}(`)) continue;
      bytes.write('view', bytes.indexOf(' pure', span(node)[0]) + 1);
    }
    visit(name, node);
  }

  const [contractFrom] = span(contract);
  const bodyFrom = bytes.indexOf('{', contractFrom) + 1;
  insertions.push({ at: bytes.length, text: preamble, size: Number.MAX_SAFE_INTEGER, opens: false });
  insertions.push({ at: bodyFrom, text: members, size: Number.MAX_SAFE_INTEGER, opens: true });
  // At one place what ends there ends first, the inner before the outer; then begins what begins there, the outer first.
  insertions.sort((one, other) => {
    if (one.at !== other.at) return one.at - other.at;
    if (one.opens !== other.opens) return one.opens ? 1 : -1;
    return one.opens ? other.size - one.size : one.size - other.size;
  });
  const parts: Buffer[] = [];
  let at = 0;
  for (const insertion of insertions) {
    parts.push(bytes.subarray(at, insertion.at), Buffer.from(insertion.text));
    at = insertion.at;
  }
  parts.push(bytes.subarray(at));
  return { source: Buffer.concat(parts).toString(), mutants };
}

/** Syntax tree of LeaseEscrow.sol, by the compiler that also makes what is shipped. */
export async function parseEscrow(): Promise<{ source: string; ast: AstNode }> {
  const require = createRequire(import.meta.url);
  const solc = require('solc') as { compile(input: string, callbacks: object): string };
  const { readFileSync } = await import('node:fs');
  const name = 'src/LeaseEscrow.sol';
  const source = await readFile(join(contractsFolder, name), 'utf8');
  const settings = {
    evmVersion: 'cancun',
    remappings: ['@openzeppelin/=../../node_modules/@openzeppelin/'],
    outputSelection: { '*': { '': ['ast'] } },
  };
  const input = JSON.stringify({ language: 'Solidity', sources: { [name]: { content: source } }, settings });
  const output = JSON.parse(
    solc.compile(input, {
      import: (path: string) => ({ contents: readFileSync(join(contractsFolder, path), 'utf8') }),
    }),
  ) as { sources: Record<string, { ast?: AstNode }>; errors?: readonly { formattedMessage: string }[] };
  const ast = output.sources[name]?.ast;
  if (!ast) throw new Error((output.errors ?? []).map((error) => error.formattedMessage).join('\n'));
  return { source, ast };
}

export const readEquivalents = async (): Promise<Equivalents> =>
  JSON.parse(await readFile(join(contractsFolder, 'equivalent-mutants.json'), 'utf8')) as Equivalents;

const slow = /^(invariant|test_I14)_/;

/** Tests that noticed mutants of a function, the latest first: what notices one notices most of its neighbours. */
export function createKillers(most = 8) {
  const known = new Map<string, readonly string[]>();
  const functionOf = (id: string) => id.split(':', 1)[0]!;
  return {
    of: (id: string): readonly string[] => known.get(functionOf(id)) ?? [],
    noticed(id: string, test: string): void {
      const others = (known.get(functionOf(id)) ?? []).filter((one) => one !== test);
      known.set(functionOf(id), [test, ...others].slice(0, most));
    },
  };
}

/**
 * Runs the tests against each mutant, two at a time: first those that noticed another mutant of the same function, then the
 * quick suites, then traces for the differential test, which decide what the others let live. Throws when the tests fail
 * without any mutant.
 */
export async function runMutants(options: {
  readonly equivalents: Equivalents;
  readonly writeTraces: (folder: string) => Promise<string>;
  readonly report: (verdict: Verdict, of: number) => void;
  readonly only?: string;
}): Promise<Mutation> {
  const { source, ast } = await parseEscrow();
  const planted = plant(source, ast);
  const copy = await copyProject();
  try {
    await writeFile(join(copy.folder, 'src/LeaseEscrow.sol'), planted.source);
    await build(copy.folder);
    const traces = await options.writeTraces(copy.folder);
    const all = planted.mutants.filter(
      ({ id }) => !(id in options.equivalents) && (!options.only || id.includes(options.only)),
    );
    const healthy = await killerOf(0);
    if (healthy !== undefined) throw new Error(`without any mutant, ${healthy} fails in the copy`);

    const killers = createKillers();
    const verdicts: Verdict[] = [];
    const queue = [...all];
    const worker = async () => {
      for (let next = queue.shift(); next; next = queue.shift()) {
        const verdict = { ...next, killedBy: await killerOf(next.number, killers.of(next.id)) };
        // Invariants and traces take longer than all the others together.
        if (verdict.killedBy !== undefined && !slow.test(verdict.killedBy)) killers.noticed(next.id, verdict.killedBy);
        options.report(verdict, all.length);
        verdicts.push(verdict);
      }
    };
    await Promise.all([worker(), worker()]);
    const ids = new Set(planted.mutants.map(({ id }) => id));
    return {
      verdicts: verdicts.sort((one, other) => one.number - other.number),
      unknown: Object.keys(options.equivalents).filter((id) => !ids.has(id)),
    };

    async function killerOf(number: number, likely: readonly string[] = []): Promise<string | undefined> {
      const env = {
        FOUNDRY_BLOCK_COINBASE: `0x${number.toString(16).padStart(40, '0')}`,
        FOUNDRY_FUZZ_RUNS: '24',
        FOUNDRY_INVARIANT_RUNS: '12',
        FOUNDRY_GAS_LIMIT: '18446744073709551615',
      };
      const withTraces = { GPULEASE_TRACES: traces };
      const run = async (args: readonly string[], more: Readonly<Record<string, string>> = {}) => {
        const output = await runForge(['test', '--fail-fast', '--threads', '1', ...args], {
          cwd: copy.folder,
          env: { ...env, ...more },
        });
        if (output.code === 0) return undefined;
        const failed = /^\[FAIL.*\] (\w+)\(/m.exec(output.stdout)?.[1];
        if (!failed)
          throw new Error(`mutant ${number}: forge failed: ${(output.stderr || output.stdout).slice(-1500)}`);
        return failed;
      };
      return (
        (likely.length > 0 ? await run(['--match-test', `^(${likely.join('|')})(\\(|$)`], withTraces) : undefined) ??
        (await run(['--no-match-contract', 'GasTest|InvariantsTest|TracesTest'])) ??
        (await run(['--match-contract', 'TracesTest'], withTraces)) ??
        (await run(['--match-contract', 'InvariantsTest']))
      );
    }
  } finally {
    await copy.remove();
  }
}
