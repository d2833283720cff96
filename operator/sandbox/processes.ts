/**
 * The programs of a sandbox, as child processes: started with a log file, waited for, watched, and ended in order.
 *
 * Invariant: no program outlives the sandbox. Ctrl-C and SIGTERM end them in reverse order of starting; if this process
 * is killed outright, a guardian (a shell that waits for our end of a pipe to close) kills what is on record; and if the
 * guardian was killed too, the next start on the same folder finds the record and ends what is left. A process is only
 * ever ended when its start time is the one on record, so that a re-used number harms nobody.
 *
 * Every program is a session of its own (`detached`), because Ctrl-C in a terminal goes to the whole foreground group and
 * would take etcd away from under an API server that is still shutting down.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import {
  appendFileSync,
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** Where progress goes: one line for a person, without a line end. */
export type Report = (line: string) => void;

export interface ProcessSpec {
  /** Unique in its supervisor; also the name of the log file. */
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Asked again and again until true. A thrown error counts as "not yet" and is shown if the time runs out. */
  readonly ready?: (signal: AbortSignal) => Promise<boolean>;
  readonly readyTimeoutSeconds?: number;
  /** How long SIGTERM may take before SIGKILL follows. */
  readonly stopTimeoutSeconds?: number;
  /** `command` only sets the stage (nsenter) and forks the real program: signals go to that one. */
  readonly forksProgram?: boolean;
  /** Keeps our end of its standard input open: a program that reads it to the end dies with us. */
  readonly holdStdin?: boolean;
  /** It has an end of its own, which is no crash: see `ended`. */
  readonly job?: boolean;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface ManagedProcess {
  readonly name: string;
  readonly pid: number;
  readonly running: boolean;
  readonly logFile: string;
  /** How it ended, once it has. */
  readonly ended: Promise<Exit>;
  /** Sends the signal and, for SIGKILL and SIGTERM, waits until the process is gone. Counts as wanted, not as a crash. */
  kill(signal?: NodeJS.Signals): Promise<void>;
  /** SIGTERM, then SIGKILL when it takes too long. */
  stop(): Promise<void>;
  /** Starts it again with the same command line and waits until ready; ends it first if it runs. */
  restart(how?: { readonly signal?: 'SIGTERM' | 'SIGKILL' }, signal?: AbortSignal): Promise<void>;
}

export interface Supervisor {
  start(spec: ProcessSpec, signal?: AbortSignal): Promise<ManagedProcess>;
  get(name: string): ManagedProcess;
  readonly pids: Readonly<Record<string, number>>;
  /** Ends everything, last started first. Safe to repeat. */
  stop(): Promise<void>;
}

/** A program ended, or never became ready. The message carries the end of its log. */
export class ProcessError extends Error {
  readonly #logTail: string; // private, so that printing the error does not print it twice
  constructor(message: string, logTail: string) {
    super(logTail ? `${message}\n${indent(logTail)}` : message);
    this.name = 'ProcessError';
    this.#logTail = logTail;
  }
  get logTail(): string {
    return this.#logTail;
  }
}

export interface SupervisorOptions {
  /** Logs go to `dir/log`, the record of what runs to `dir/pids`. */
  readonly dir: string;
  readonly report: Report;
  /** Called when a program ends that nobody asked to end. Reported in any case. */
  readonly onCrash?: (error: ProcessError, name: string) => void;
}

export function createSupervisor({ dir, report, onCrash }: SupervisorOptions): Supervisor {
  const recordDir = join(dir, 'pids', `${process.pid}-${randomBytes(4).toString('hex')}`);
  mkdirSync(join(dir, 'log'), { recursive: true, mode: 0o700 });
  mkdirSync(recordDir, { recursive: true, mode: 0o700 });
  const all = new Map<string, Managed>();
  const guardian = startGuardian(recordDir);
  let stopping: Promise<void> | undefined;

  const supervisor: Supervisor = {
    async start(spec, signal) {
      if (stopping) throw new Error(`cannot start ${spec.name}: its sandbox is being stopped`);
      if (all.get(spec.name)?.running) throw new Error(`${spec.name} is running already`);
      const managed = new Managed(spec, { logFile: join(dir, 'log', `${spec.name}.log`), recordDir }, (error) => {
        report(error.message);
        onCrash?.(error, spec.name);
      });
      all.delete(spec.name); // a later start belongs at the end of the order
      all.set(spec.name, managed);
      await managed.start(signal);
      return managed;
    },
    get(name) {
      const managed = all.get(name);
      if (!managed) throw new Error(`no process named ${name}; there are: ${[...all.keys()].join(', ')}`);
      return managed;
    },
    get pids() {
      return Object.fromEntries([...all.values()].filter((m) => m.running).map((m) => [m.name, m.pid]));
    },
    stop() {
      stopping ??= (async () => {
        for (const managed of [...all.values()].reverse()) await managed.stop();
        forgetAtExit(emergency);
        guardian.stdin?.end();
        rmSync(recordDir, { recursive: true, force: true });
      })();
      return stopping;
    },
  };
  // The last resort, when this process ends without stopping first (an uncaught error, process.exit).
  const emergency = () => {
    for (const managed of all.values()) managed.killNow();
  };
  rememberAtExit(emergency);
  return supervisor;
}

class Managed implements ManagedProcess {
  readonly #spec: ProcessSpec;
  readonly #paths: { logFile: string; recordDir: string };
  readonly #crashed: (error: ProcessError) => void;
  #child: ChildProcess | undefined;
  #gone: Promise<Exit> = Promise.resolve({ code: null, signal: null });
  #exit: Exit | undefined;
  #wanted = true;

  constructor(
    spec: ProcessSpec,
    paths: { logFile: string; recordDir: string },
    crashed: (error: ProcessError) => void,
  ) {
    this.#spec = spec;
    this.#paths = paths;
    this.#crashed = crashed;
  }

  get name(): string {
    return this.#spec.name;
  }
  get logFile(): string {
    return this.#paths.logFile;
  }
  get ended(): Promise<Exit> {
    return this.#gone;
  }
  get running(): boolean {
    return this.#child?.pid !== undefined && this.#exit === undefined;
  }
  get pid(): number {
    const pid = this.#child?.pid;
    if (pid === undefined) throw new Error(`${this.name} has not been started`);
    return this.#spec.forksProgram ? (onlyChildOf(pid) ?? pid) : pid;
  }

  async start(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const { name, command, args, env, cwd, holdStdin } = this.#spec;
    const log = openSync(this.logFile, 'a', 0o600);
    appendFileSync(log, `==== ${new Date().toISOString()} ${command} ${args.join(' ')}\n`);
    const logStart = fstatSync(log).size;
    const child = spawn(command, args, {
      cwd,
      env: { ...process.env, ...env },
      detached: true,
      stdio: [holdStdin ? 'pipe' : 'ignore', log, log],
    });
    closeSync(log);
    child.unref();
    (child.stdin as { unref?: () => void } | null)?.unref?.();
    this.#child = child;
    this.#exit = undefined;
    this.#wanted = true;
    let isReady = false;
    this.#gone = new Promise<Exit>((resolve) => {
      const end = (exit: Exit, why: string) => {
        if (this.#exit) return;
        this.#exit = exit;
        this.#forget();
        resolve(exit);
        if (this.#wanted && isReady && !this.#spec.job)
          this.#crashed(new ProcessError(`${name} ended by itself (${why})`, this.#tail(logStart)));
      };
      child.once('error', (error) => end({ code: null, signal: null }, error.message));
      child.once('exit', (code, sig) => end({ code, signal: sig }, sig ? `signal ${sig}` : `exit code ${code}`));
    });
    this.#remember();
    try {
      await this.#untilReady(logStart, signal);
      isReady = true;
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  async #untilReady(logStart: number, signal?: AbortSignal): Promise<void> {
    const { name, ready, readyTimeoutSeconds = 60 } = this.#spec;
    const timeout = AbortSignal.timeout(readyTimeoutSeconds * 1000);
    const either = signal ? AbortSignal.any([signal, timeout]) : timeout;
    let last: unknown;
    for (let wait = 15; ; wait = Math.min(wait * 1.3, 150)) {
      signal?.throwIfAborted();
      await sleep(wait);
      if (!this.running) {
        const exit = await this.#gone;
        const how = exit.signal
          ? `signal ${exit.signal}`
          : exit.code === null
            ? 'could not be started'
            : `exit code ${exit.code}`;
        throw new ProcessError(
          `${name} ended before it was ready (${how}); its log is ${this.logFile}`,
          this.#tail(logStart),
        );
      }
      if (!ready) return;
      try {
        if (await ready(either)) return;
      } catch (error) {
        last = error;
      }
      if (timeout.aborted) {
        const why = last instanceof Error ? ` (${last.message})` : '';
        throw new ProcessError(
          `${name} was not ready after ${readyTimeoutSeconds} s${why}; its log is ${this.logFile}`,
          this.#tail(logStart),
        );
      }
    }
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (!this.running) return;
    const ends = signal === 'SIGKILL' || signal === 'SIGTERM' || signal === 'SIGINT';
    if (!ends) return this.#send(signal);
    this.#wanted = false;
    this.#child?.ref();
    this.#send(signal);
    await this.#gone;
  }

  async stop(): Promise<void> {
    this.#wanted = false;
    if (!this.running) return;
    this.#child?.ref();
    this.#send('SIGTERM');
    const deadline = new AbortController();
    const late = sleep((this.#spec.stopTimeoutSeconds ?? 10) * 1000, 'late', { signal: deadline.signal }).catch(
      () => 'early',
    );
    if ((await Promise.race([this.#gone, late])) === 'late') this.#send('SIGKILL');
    deadline.abort();
    await this.#gone;
  }

  async restart(how: { readonly signal?: 'SIGTERM' | 'SIGKILL' } = {}, signal?: AbortSignal): Promise<void> {
    if (how.signal === 'SIGKILL') await this.kill('SIGKILL');
    else await this.stop();
    await this.start(signal);
  }

  /** Without waiting, for the moment in which this process itself ends. */
  killNow(): void {
    if (this.running) this.#send('SIGKILL');
  }

  #send(signal: NodeJS.Signals): void {
    const pid = this.#child?.pid;
    if (pid === undefined) return;
    const target = this.#spec.forksProgram ? (onlyChildOf(pid) ?? -pid) : -pid;
    signalQuietly(target, signal);
  }

  #remember(): void {
    const pid = this.#child?.pid;
    if (pid === undefined) return;
    const record: Recorded = { name: this.name, pid, identity: identityOf(pid) ?? '' };
    writeFileSync(join(this.#paths.recordDir, `${this.name}.json`), JSON.stringify(record), { mode: 0o600 });
    writeFileSync(join(this.#paths.recordDir, `${this.name}.pid`), String(pid), { mode: 0o600 });
  }

  #forget(): void {
    rmSync(join(this.#paths.recordDir, `${this.name}.json`), { force: true });
    rmSync(join(this.#paths.recordDir, `${this.name}.pid`), { force: true });
  }

  #tail(from: number): string {
    return logTail(this.logFile, from);
  }
}

/** The last lines a program wrote, at most 4 KiB, from `from` on. */
export function logTail(file: string, from = 0, lines = 15): string {
  if (!existsSync(file)) return '';
  const fd = openSync(file, 'r');
  try {
    const size = fstatSync(fd).size;
    const start = Math.max(from, size - 4096);
    const buffer = Buffer.alloc(Math.max(0, size - start));
    readSync(fd, buffer, 0, buffer.length, start);
    return buffer.toString('utf8').trimEnd().split('\n').slice(-lines).join('\n');
  } finally {
    closeSync(fd);
  }
}

interface Recorded {
  readonly name: string;
  readonly pid: number;
  /** Boot and start time: what makes a process number mean one process. */
  readonly identity: string;
}

/**
 * Ends what an earlier run on this folder left behind when it was killed outright. Throws when that run is still alive:
 * two sandboxes on one folder would take each other's ports and data.
 */
export async function endLeftovers(dir: string, report: Report): Promise<void> {
  const root = join(dir, 'pids');
  if (!existsSync(root)) return;
  for (const parent of readdirSync(root)) {
    const folder = join(root, parent);
    const records = readdirSync(folder)
      .filter((file) => file.endsWith('.json'))
      .map((file) => JSON.parse(readFileSync(join(folder, file), 'utf8')) as Recorded)
      .filter((record) => record.identity !== '' && identityOf(record.pid) === record.identity);
    const owner = Number(parent.split('-')[0]);
    const ownerFile = join(folder, 'owner');
    const ownerIdentity = existsSync(ownerFile) ? readFileSync(ownerFile, 'utf8') : '';
    if (ownerIdentity !== '' && identityOf(owner) === ownerIdentity) {
      if (owner === process.pid || records.length === 0) continue;
      throw new Error(`${dir} is in use by process ${owner}; stop that one first, or choose another folder`);
    }
    for (const record of records) {
      report(`ending ${record.name} (process ${record.pid}), left behind by an earlier run`);
      signalQuietly(-record.pid, 'SIGKILL');
      for (let i = 0; i < 100 && identityOf(record.pid) === record.identity; i++) await sleep(50);
    }
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * A shell that reads our pipe until it closes, then kills every group on record. It costs one sleeping process, and it
 * alone makes `kill -9` of a sandbox leave nothing behind.
 */
function startGuardian(recordDir: string): ChildProcess {
  writeFileSync(join(recordDir, 'owner'), identityOf(process.pid) ?? '', { mode: 0o600 });
  const script =
    'cat >/dev/null; cd "$1" 2>/dev/null || exit 0; for f in *.pid; do [ -e "$f" ] && kill -KILL "-$(cat "$f")"; done; cd / && rm -rf "$1"';
  const child = spawn('/bin/sh', ['-c', script, 'gpulease-guardian', recordDir], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  child.unref();
  (child.stdin as { unref?: () => void } | null)?.unref?.();
  child.stdin?.on('error', () => undefined); // it was killed: the record on disk still stands in for it
  return child;
}

/** Boot and start time of a process, or undefined when there is none (a zombie counts as none). */
export function identityOf(pid: number): string | undefined {
  try {
    if (process.platform === 'linux') {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
      // Not the command line: a process that was just forked still shows its parent's until it has called exec.
      return `${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()} ${fields[19]}`;
    }
    return execFileSync('ps', ['-o', 'lstart=,stat=', '-p', String(pid)], { encoding: 'utf8' }).trim() || undefined;
  } catch {
    return undefined; // no such process
  }
}

function onlyChildOf(pid: number): number | undefined {
  try {
    const [first] = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ');
    return first ? Number(first) : undefined;
  } catch {
    return undefined; // gone
  }
}

function signalQuietly(target: number, signal: NodeJS.Signals): void {
  try {
    process.kill(target, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error; // gone already: that is what was wanted
  }
}

const atExit = new Set<() => void>();
function rememberAtExit(run: () => void): void {
  if (atExit.size === 0) process.on('exit', runAtExit);
  atExit.add(run);
}
function forgetAtExit(run: () => void): void {
  atExit.delete(run);
  if (atExit.size === 0) process.off('exit', runAtExit);
}
function runAtExit(): void {
  for (const run of atExit) run();
}

const stopSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const stops: { readonly stop: () => Promise<void>; readonly report: Report }[] = [];

function onStopSignal(signal: NodeJS.Signals): void {
  for (const each of stopSignals) process.off(each, onStopSignal); // a second signal ends us at once
  void (async () => {
    for (const { stop, report } of stops.splice(0).reverse()) {
      await stop().catch((error: Error) => report(`while stopping: ${error.message}`));
    }
    process.kill(process.pid, signal);
  })();
}

/**
 * On SIGINT, SIGTERM or SIGHUP calls every `stop` given here, last given first, and then ends this process as the signal
 * would have. A second signal does not wait. Returns a function that takes the `stop` back.
 */
export function stopWithSignals(stop: () => Promise<void>, report: Report): () => void {
  const entry = { stop, report };
  if (stops.length === 0) for (const signal of stopSignals) process.on(signal, onStopSignal);
  stops.push(entry);
  return () => {
    const at = stops.indexOf(entry);
    if (at < 0) return;
    stops.splice(at, 1);
    if (stops.length === 0) for (const signal of stopSignals) process.off(signal, onStopSignal);
  };
}

/** Below those that systems give to outgoing connections, one of which might be made before the port is used. */
const freeFrom = 11_000;
const freeBelow = 20_000;
const mostGuesses = 1000;

/** Ports that are free now, drawn by chance. Should another program take one before it is used, whoever uses it says so, and ends. */
export async function freePorts(count: number): Promise<number[]> {
  const held: Server[] = [];
  try {
    for (let guesses = 0; held.length < count; guesses += 1) {
      if (guesses === mostGuesses) throw new Error(`no ${count} free ports from ${freeFrom} to ${freeBelow - 1}`);
      const server = await listening(randomInt(freeFrom, freeBelow));
      if (server) held.push(server);
    }
    return held.map((server) => (server.address() as AddressInfo).port);
  } finally {
    await Promise.all(held.map((server) => new Promise((resolve) => server.close(resolve))));
  }
}

/** Undefined: somebody else has the port. */
function listening(port: number): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error),
    );
    server.listen(port, '127.0.0.1', () => resolve(server));
  });
}

function indent(text: string): string {
  return text
    .split('\n')
    .map((line) => `    ${line}`)
    .join('\n');
}
