/**
 * A local EVM chain: anvil, as a child process, whose state survives its restarts.
 *
 * The accounts are those of anvil's default mnemonic ("test test … junk"): their private keys are printed in every tutorial.
 * They hold play money on a chain that exists on this machine only; never send anything of value to them.
 */
import { accessSync, constants, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { delimiter, dirname, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { HDNodeWallet } from 'ethers';
import { createSupervisor, endLeftovers, freePorts, ProcessError, type Report } from '../processes.ts';

/** Known to everyone; for local chains only. */
export const WELL_KNOWN_MNEMONIC = 'test test test test test test test test test test test junk';

export interface AnvilOptions {
  /** The chain's own folder: log, and `state.json`. */
  readonly dir: string;
  readonly report: Report;
  readonly chainId?: number;
  /** A block every so many seconds. Left out: a block for each transaction, which hides bugs with nonces and reorgs. */
  readonly blockTimeSeconds?: number;
  /** With `blockTimeSeconds`: also a block as soon as a transaction comes. */
  readonly mineAtOnceToo?: boolean;
  /** `safe` and `finalized` are one and two epochs behind `latest`. Anvil's own 32 leaves both at 0 for minutes. */
  readonly slotsInAnEpoch?: number;
  /** Goes on with the chain that an earlier run left in `dir`; otherwise it is forgotten. */
  readonly keepState?: boolean;
  readonly accounts?: number;
  readonly extraArgs?: readonly string[];
  readonly onCrash?: (error: ProcessError) => void;
}

export interface DevAccount {
  readonly address: string;
  readonly privateKey: string;
}

export interface Anvil {
  readonly rpcUrl: string;
  readonly chainId: number;
  readonly accounts: readonly DevAccount[];
  readonly pid: number;
  /** A plain JSON-RPC call; throws on an error answer. */
  rpc<T = unknown>(method: string, ...params: unknown[]): Promise<T>;
  /** Every connection is cut at once, as by a kill -9 of a node; the chain itself is kept, as a public chain would be. */
  kill(): Promise<void>;
  /** Same port, same chain. Ends it first if it runs. */
  restart(signal?: AbortSignal): Promise<void>;
  stop(): Promise<void>;
}

export async function startAnvil(options: AnvilOptions, signal?: AbortSignal): Promise<Anvil> {
  await endLeftovers(options.dir, options.report);
  const attempts = 3;
  for (let attempt = 1; ; attempt++) {
    try {
      return await startOnce(options, signal);
    } catch (error) {
      const portTaken = error instanceof ProcessError && /address already in use/i.test(error.logTail);
      if (!portTaken || attempt === attempts) throw error;
    }
  }
}

async function startOnce(options: AnvilOptions, signal?: AbortSignal): Promise<Anvil> {
  const { dir, report, chainId = 31337, blockTimeSeconds, slotsInAnEpoch = 4, accounts = 10 } = options;
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const state = join(dir, 'state.json');
  if (!options.keepState) rmSync(state, { force: true });
  const [port = 0] = await freePorts(1);
  const rpcUrl = `http://127.0.0.1:${port}`;
  const rpc = <T>(method: string, ...params: unknown[]) => call<T>(rpcUrl, method, params);
  const supervisor = createSupervisor({ dir, report, onCrash: options.onCrash });
  try {
    const anvil = await supervisor.start(
      {
        name: 'anvil',
        command: findAnvil(),
        args: [
          `--port=${port}`,
          '--host=127.0.0.1',
          `--chain-id=${chainId}`,
          `--accounts=${accounts}`,
          `--mnemonic=${WELL_KNOWN_MNEMONIC}`,
          `--slots-in-an-epoch=${slotsInAnEpoch}`,
          ...(blockTimeSeconds === undefined ? [] : [`--block-time=${blockTimeSeconds}`]),
          ...(blockTimeSeconds !== undefined && options.mineAtOnceToo ? ['--mixed-mining'] : []),
          `--state=${state}`,
          // For a chain that ends together with us. Two kilobytes a block: states of the past are left out (see `save`).
          '--state-interval=1',
          '--silent',
          ...(options.extraArgs ?? []),
        ],
        ready: async () => Number(await rpc<string>('eth_chainId')) === chainId,
        readyTimeoutSeconds: 30,
      },
      signal,
    );
    const kill = async () => {
      if (!anvil.running) return;
      const saved = await save(rpc);
      await anvil.kill('SIGKILL');
      writeFileSync(state, saved);
    };
    return {
      rpcUrl,
      chainId,
      accounts: devAccounts(accounts),
      get pid() {
        return anvil.pid;
      },
      rpc,
      kill,
      async restart(abort) {
        await kill();
        await anvil.restart({}, abort);
      },
      stop: () => supervisor.stop(),
    };
  } catch (error) {
    await supervisor.stop();
    throw error;
  }
}

/** Beyond this many blocks the states of the past (up to 300 KB a block) are too much to carry over a restart. */
const MAX_BLOCKS_WITH_HISTORY = 1000;

/**
 * The chain as a state file. With the states of the past, or else a restarted chain answers no read at `safe` until an epoch
 * has gone by, which no real chain does.
 */
async function save(rpc: Anvil['rpc']): Promise<Buffer> {
  const blocks = Number(await rpc<string>('eth_blockNumber'));
  const packed = await rpc<string>('anvil_dumpState', blocks <= MAX_BLOCKS_WITH_HISTORY);
  return gunzipSync(Buffer.from(packed.slice(2), 'hex'), { maxOutputLength: 1 << 30 });
}

export function devAccounts(count: number): DevAccount[] {
  const root = HDNodeWallet.fromPhrase(WELL_KNOWN_MNEMONIC, undefined, "m/44'/60'/0'/0");
  return Array.from({ length: count }, (_, index) => {
    const { address, privateKey } = root.deriveChild(index);
    return { address, privateKey };
  });
}

let nextId = 1;
async function call<T>(url: string, method: string, params: readonly unknown[]): Promise<T> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '2.0', id: nextId++, method, params }),
    signal: AbortSignal.timeout(15_000),
  });
  const answer = (await response.json()) as { result?: T; error?: { message: string } };
  if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
  return answer.result as T;
}

/** The platform's npm package, or PATH. */
export function findAnvil(): string {
  const inPackage = fromPackage();
  if (inPackage) return inPackage;
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(folder, 'anvil');
    if (folder && isProgram(path)) return path;
  }
  throw new Error(
    `there is no anvil for ${process.platform}-${process.arch} among the npm packages, nor on PATH: ` +
      'install Foundry 1.7 or newer (https://getfoundry.sh), or give the sandbox an RPC URL',
  );
}

function fromPackage(): string | undefined {
  const arch = process.arch === 'x64' ? 'amd64' : process.arch;
  try {
    const manifest = createRequire(import.meta.url).resolve(
      `@foundry-rs/anvil-${process.platform}-${arch}/package.json`,
    );
    const path = join(dirname(manifest), 'bin', 'anvil');
    return existsSync(path) ? path : undefined;
  } catch {
    return undefined; // an optional dependency, left out on platforms that it was not made for
  }
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
