/**
 * Streams of one container on a real node: through the virtual node and straight at the provider's API server, by turns. It
 * is the same container both times, so that all that differs is the way.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { Exec, KubeConfig } from '@kubernetes/client-node';
import type { Hex32 } from '../../operator/api/messages.ts';
import { tenantNamespace } from '../../operator/core/allocation/record.ts';
import { remotePodName } from '../../operator/core/node/names.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import { freePorts } from '../../operator/sandbox/processes.ts';
import { until } from '../../operator/sandbox/scenario.ts';
import { median, type Target, told } from './figures.ts';
import { type Lab, tolerations } from './lab.ts';
import { type Spread, spread } from './latency.ts';

export interface StreamFigures {
  readonly execLatency: Compared<Spread>;
  /** Standard output of a program, MB/s. */
  readonly execOutput: Compared<number>;
  /** Standard input of one. */
  readonly execInput: Compared<number>;
  /** kubectl logs of 8 MB, MB/s. */
  readonly logs: Compared<number>;
  /** 64 bytes there and back on an open port-forward, ms. */
  readonly portForward: Compared<Spread>;
}

interface Compared<T> {
  readonly straight: T;
  readonly ours: T;
  readonly ratio: number;
}

/** One container, as it is called on one of the two ways. */
interface Way {
  readonly name: 'straight' | 'ours';
  readonly kubeconfig: string;
  readonly namespace: string;
  readonly pod: string;
}

const port = 8080;
/** A kubelet begins a new log at 10 MiB, in which each line has its time, too. */
const logMegabytes = 6;
const streamMegabytes = 256;
const mega = 1_000_000;

/** Writes its log at once, in lines of 100 bytes: one that has no end is held back. Then it echoes whatever comes to its port. */
const program = `yes "$(head -c 99 /dev/zero | tr '\\0' x)" | head -c ${logMegabytes * mega}; exec nc -ll -p ${port} -e cat`;

export async function streams(
  lab: Lab,
  options: { readonly samples: number; readonly rounds: number; readonly say: (line: string) => void },
): Promise<{ figures: StreamFigures; targets: Target[] }> {
  const { say } = options;
  const ways = await startPod(lab);
  const compare = async <T>(what: string, times: number, measure: (way: Way) => Promise<T>) => {
    const values: Record<Way['name'], T[]> = { straight: [], ours: [] };
    for (let i = -1; i < times; i += 1) {
      for (const way of i % 2 === 0 ? ways : ways.toReversed()) {
        lab.signal.throwIfAborted();
        const value = await measure(way);
        if (i >= 0) values[way.name].push(value); // the first warms up
      }
    }
    say(`${what}: done`);
    return values;
  };
  const rate = ({ straight, ours }: Record<Way['name'], number[]>): Compared<number> => {
    const [plain, mine] = [median(straight), median(ours)];
    return { straight: told(plain), ours: told(mine), ratio: told(mine / plain) };
  };
  const delay = ({ straight, ours }: Record<Way['name'], number[]>): Compared<Spread> => {
    const [plain, mine] = [spread(straight), spread(ours)];
    return { straight: plain, ours: mine, ratio: told(mine.p50Ms / plain.p50Ms) };
  };

  const execLatency = delay(await compare('exec latency', options.samples * 4, (way) => execOnce(way)));
  const execOutput = rate(await compare('exec output', options.rounds, (way) => output(lab, way)));
  const execInput = rate(await compare('exec input', options.rounds, (way) => input(lab, way)));
  const logs = rate(await compare('logs', options.rounds, (way) => readLog(lab, way)));
  const forwarded: Record<Way['name'], number[]> = { straight: [], ours: [] };
  for (const way of ways) forwarded[way.name] = await echoes(lab, way, options.samples * 4);
  say('port-forward: done');
  const portForward = delay(forwarded);
  return {
    figures: { execLatency, execOutput, execInput, logs, portForward },
    targets: [
      { what: 'exec latency, times straight', measured: execLatency.ratio, atMost: 1.3 },
      { what: 'exec output, share of straight', measured: execOutput.ratio, atLeast: 0.6 },
      { what: 'exec input, share of straight', measured: execInput.ratio, atLeast: 0.6 },
    ],
  };
}

async function startPod(lab: Lab): Promise<readonly [straight: Way, ours: Way]> {
  const { ours, straight, signal } = lab;
  const name = 'streams';
  const made = await ours.cluster.create(
    resources.pods,
    {
      metadata: { name, namespace: ours.namespace },
      spec: {
        nodeSelector: ours.nodeSelector,
        tolerations,
        terminationGracePeriodSeconds: 0,
        containers: [{ name: 'main', image: TOOLS_IMAGE, command: ['sh', '-c', program] }],
      },
    } as KubeObject,
    signal,
  );
  type Pod = KubeObject & { status?: { phase?: string } };
  await until(
    `pod ${name} Running`,
    60,
    async () =>
      (await ours.cluster.get<Pod>(resources.pods, { namespace: ours.namespace, name }, signal))?.status?.phase ===
      'Running'
        ? true
        : undefined,
    signal,
  );
  await sleep(2000, undefined, { signal }); // until its log is written
  const leaseId = lab.lease.witness.lease!.status!.settlement!.leaseId as Hex32;
  return [
    {
      name: 'straight',
      kubeconfig: straight.kubeconfig,
      namespace: tenantNamespace(leaseId),
      pod: remotePodName(name, made.metadata.uid ?? ''),
    },
    { name: 'ours', kubeconfig: ours.kubeconfig, namespace: ours.namespace, pod: name },
  ];
}

const devNull = () => new Writable({ write: (_chunk, _encoding, done) => done() });

/** Milliseconds from asking for `true` to its exit code, over a connection of its own, as kubectl makes one. */
async function execOnce(way: Way): Promise<number> {
  const config = new KubeConfig();
  config.loadFromFile(way.kubeconfig);
  const startedAt = performance.now();
  return new Promise((resolve, reject) => {
    new Exec(config)
      .exec(way.namespace, way.pod, 'main', ['true'], devNull(), devNull(), null, false, (status) => {
        if (status.status === 'Success') resolve(performance.now() - startedAt);
        else reject(new Error(`${way.name}: exec ended with ${status.message}`));
      })
      .catch(reject);
  });
}

const kubectl = (lab: Lab, way: Way, args: readonly string[], stdin: 'ignore' | 'pipe' = 'ignore'): ChildProcess =>
  spawn(lab.sandbox.kubectl, ['--kubeconfig', way.kubeconfig, '-n', way.namespace, ...args], {
    stdio: [stdin, 'pipe', 'inherit'],
    signal: lab.signal,
  });

/** MB/s between the first byte that comes out and the last: how long kubectl takes to start is nobody's business here. */
async function drain(way: Way, what: string, child: ChildProcess, bytes: number): Promise<number> {
  let first: number | undefined;
  let last = 0;
  let received = 0;
  child.stdout!.on('data', (chunk: Buffer) => {
    first ??= performance.now();
    last = performance.now();
    received += chunk.length;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0 || received !== bytes)
    throw new Error(`${way.name}: ${what} gave ${received} of ${bytes} bytes, exit code ${code}`);
  return bytes / mega / ((last - first!) / 1000);
}

const output = (lab: Lab, way: Way) =>
  drain(
    way,
    'exec',
    kubectl(lab, way, ['exec', way.pod, '--', 'head', '-c', String(streamMegabytes * mega), '/dev/zero']),
    streamMegabytes * mega,
  );

const readLog = (lab: Lab, way: Way) => drain(way, 'logs', kubectl(lab, way, ['logs', way.pod]), logMegabytes * mega);

/** The container says when it begins to read and when it has read everything. */
async function input(lab: Lab, way: Way): Promise<number> {
  const bytes = streamMegabytes * mega;
  const script = `echo ready; head -c ${bytes} >/dev/null; echo done`;
  const child = kubectl(lab, way, ['exec', '-i', way.pod, '--', 'sh', '-c', script], 'pipe');
  const block = Buffer.alloc(1 << 20);
  let startedAt = 0;
  let endedAt = 0;
  let said = '';
  child.stdout!.on('data', (chunk: Buffer) => {
    said += chunk.toString();
    if (startedAt === 0 && said.includes('ready')) {
      startedAt = performance.now();
      let left = bytes;
      const push = () => {
        while (left > 0) {
          const part = left >= block.length ? block : block.subarray(0, left);
          left -= part.length;
          if (!child.stdin!.write(part)) return void child.stdin!.once('drain', push);
        }
        child.stdin!.end();
      };
      push();
    }
    if (endedAt === 0 && said.includes('done')) endedAt = performance.now();
  });
  child.stdin!.on('error', () => undefined); // told by the exit code
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0 || endedAt === 0) throw new Error(`${way.name}: exec with input ended with exit code ${code}`);
  return bytes / mega / ((endedAt - startedAt) / 1000);
}

/** Milliseconds there and back, for each of so many small messages on one connection through kubectl port-forward. */
async function echoes(lab: Lab, way: Way, count: number): Promise<number[]> {
  const [local = 0] = await freePorts(1);
  const child = kubectl(lab, way, ['port-forward', way.pod, `${local}:${port}`]);
  const ended = once(child, 'close');
  try {
    await once(child.stdout!, 'data');
    const socket = net.connect({ host: '127.0.0.1', port: local, noDelay: true });
    await once(socket, 'connect');
    const message = Buffer.alloc(64, 'x');
    const times: number[] = [];
    for (let i = -10; i < count; i += 1) {
      const startedAt = performance.now();
      socket.write(message);
      let got = 0;
      while (got < message.length) {
        const [chunk] = (await once(socket, 'data', { signal: AbortSignal.timeout(10_000) })) as [Buffer];
        got += chunk.length;
      }
      if (i >= 0) times.push(performance.now() - startedAt);
    }
    socket.destroy();
    return times;
  } finally {
    child.kill('SIGTERM');
    await ended;
  }
}
