/**
 * The three ways to a gateway, by turns, each end in a process of its own: one large body each way, a body as a line of 1 Gbit/s
 * brings it, small requests on a connection that stands, and on one that has to be made.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { verifyRegistration } from '../../operator/adapters/chain/link-proofs.ts';
import { createHttpClient, type HttpClient } from '../../operator/adapters/provider/http.ts';
import { createRoutes } from '../../operator/adapters/provider/routes.ts';
import { audienceOf } from '../../operator/api/link.ts';
import { startLinkListener } from '../../operator/wire/link-listener.ts';
import { createLinks } from '../../operator/wire/links.ts';
import { systemTiming } from '../../operator/wire/timing.ts';
import { providerAt, publicUrl, silent } from '../conformance/transport/ways.ts';
import { authority } from '../unit/adapters/provider/tls.ts';
import type { BenchContext } from './benches.ts';
import { median, percentile, type Target, table, told } from './figures.ts';
import type { Order, Report } from './transport-end.ts';

type WayName = 'direct' | 'reverse' | 'relay';
const names: readonly WayName[] = ['direct', 'reverse', 'relay'];
const mega = 1_000_000;
const bodyBytes = 256 * mega;
const uploadBytes = 8 * mega;
const uploads = 16;
const gigabitBytesPerSecond = 125 * mega;

interface WayFigures {
  /** Of one body, as fast as it goes. */
  readonly downloadMBps: number;
  readonly uploadMBps: number;
  /** Of a body that comes at 125 MB/s. */
  readonly gigabitMBps: number;
  readonly requestP50Ms: number;
  readonly requestP99Ms: number;
  /** A connection is made for each. */
  readonly connectP50Ms: number;
  /** Of all processes together, for a download. */
  readonly cpuSecondsPerGB: number;
}
export type TransportFigures = Readonly<Record<WayName, WayFigures>> & {
  readonly ratios: Readonly<Record<Exclude<WayName, 'direct'>, { download: number; upload: number; gigabit: number }>>;
};

export async function transport(
  context: Pick<BenchContext, 'rounds' | 'samples' | 'say' | 'signal' | 'atEnd'>,
): Promise<{ figures: TransportFigures; targets: Target[] }> {
  const { rounds, samples, say, signal, atEnd } = context;
  const now = () => new Date();
  const [gateway, relay] = [end(), end()];
  atEnd(async () => {
    for (const { process: child } of [gateway, relay]) child.kill();
  });
  const up = async (one: End, be: 'gateway' | 'relay') =>
    ((await one.ask({ be })) as Extract<Report, { up: unknown }>).up;
  const [at, between] = await Promise.all([up(gateway, 'gateway'), up(relay, 'relay')]);

  const ca = await authority('ca');
  const links = createLinks({ clock: systemTiming, now });
  const listener = await startLinkListener({
    host: '127.0.0.1',
    port: 0,
    tls: await ca.issue([{ CN: ['operator'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] }),
    links,
    keeper: {
      audiences: new Set([audienceOf(publicUrl)]),
      verify: verifyRegistration,
      refuses: () => undefined,
      now,
    },
    clock: systemTiming,
    log: silent,
  });
  atEnd(async () => {
    links.endAll();
    await listener.close();
  });
  await gateway.ask({ offerAt: { url: `wss://127.0.0.1:${listener.port}`, ca: ca.pem } });
  await gateway.ask({ offerAt: { url: `wss://127.0.0.1:${between.port}`, ca: between.ca } });

  const routeOf = createRoutes({ links, clock: systemTiming, now, timeoutSeconds: 30 });
  const endpoints = {
    direct: { via: 'Direct', url: `https://127.0.0.1:${at.port}`, caBundle: at.ca, serverName: 'gpu.example.com' },
    reverse: { via: 'Reverse' },
    relay: { via: 'Relay', relay: { url: `https://127.0.0.1:${between.port}`, caBundle: between.ca } },
  } as const;
  const clients = {} as Record<WayName, HttpClient>;
  for (const name of names) {
    const route = routeOf(providerAt(endpoints[name]));
    const client = createHttpClient({ host: 'gateway', dial: route.dial, timeoutSeconds: 120 });
    clients[name] = client;
    atEnd(async () => {
      client.close();
      route.close();
    });
    await read(client, '/echo', 'call');
  }

  const values = Object.fromEntries(
    names.map((name) => [name, { down: [], up: [], gigabit: [], request: [], connect: [], cpu: [] }]),
  ) as unknown as Record<WayName, Record<'down' | 'up' | 'gigabit' | 'request' | 'connect' | 'cpu', number[]>>;
  const cpu = async () => {
    const { user, system } = process.cpuUsage();
    const others = (await Promise.all([gateway, relay].map((one) => one.ask({ cpu: true })))) as {
      cpuSeconds: number;
    }[];
    return (user + system) / 1e6 + others.reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0);
  };
  const upload = Buffer.alloc(uploadBytes, 7);

  for (let round = 0; round < rounds; round++) {
    for (const name of round % 2 === 0 ? names : names.toReversed()) {
      signal.throwIfAborted();
      const client = clients[name];
      const mine = values[name];
      // Warm: a connection at first has a small window.
      await read(client, `/bytes/${16 * mega}`, 'call');
      const before = await cpu();
      mine.down.push(bodyBytes / mega / (await seconds(() => read(client, `/bytes/${bodyBytes}`, 'call'))));
      mine.cpu.push(((await cpu()) - before) / (bodyBytes / 1e9));
      const sent = async () => {
        for (let i = 0; i < uploads; i++) await read(client, '/echo', 'call', upload);
      };
      mine.up.push((uploadBytes * uploads) / mega / (await seconds(sent)));
      mine.gigabit.push(
        bodyBytes / mega / (await seconds(() => read(client, `/paced/${gigabitBytesPerSecond}/${bodyBytes}`, 'call'))),
      );
      for (let i = 0; i < samples * 4; i++)
        mine.request.push(1000 * (await seconds(() => read(client, '/echo', 'call'))));
      for (let i = 0; i < samples; i++)
        mine.connect.push(1000 * (await seconds(() => read(client, '/echo', 'stream'))));
      say(`${name}: round ${round + 1} of ${rounds} done`);
    }
  }

  const figuresOf = (name: WayName): WayFigures => {
    const mine = values[name];
    return {
      downloadMBps: told(median(mine.down)),
      uploadMBps: told(median(mine.up)),
      gigabitMBps: told(median(mine.gigabit)),
      requestP50Ms: told(median(mine.request)),
      requestP99Ms: told(percentile(mine.request, 0.99)),
      connectP50Ms: told(median(mine.connect)),
      cpuSecondsPerGB: told(median(mine.cpu)),
    };
  };
  const ways = { direct: figuresOf('direct'), reverse: figuresOf('reverse'), relay: figuresOf('relay') };
  const ratiosOf = (name: 'reverse' | 'relay') => ({
    download: told(ways[name].downloadMBps / ways.direct.downloadMBps),
    upload: told(ways[name].uploadMBps / ways.direct.uploadMBps),
    gigabit: told(ways[name].gigabitMBps / ways.direct.gigabitMBps),
  });
  const ratios = { reverse: ratiosOf('reverse'), relay: ratiosOf('relay') };
  return {
    figures: { ...ways, ratios },
    targets: (['reverse', 'relay'] as const).map((name) => ({
      what: `${name}: what a line of 1 Gbit/s brings, to direct`,
      measured: ratios[name].gigabit,
      atLeast: 0.7,
    })),
  };
}

interface End {
  readonly process: ChildProcess;
  ask(order: Order): Promise<Report>;
}

function end(): End {
  const child = fork(fileURLToPath(new URL('transport-end.ts', import.meta.url)), { stdio: 'inherit' });
  return {
    process: child,
    ask: (order) =>
      new Promise((resolve, reject) => {
        const onMessage = (report: unknown) => {
          child.off('exit', onExit);
          resolve(report as Report);
        };
        const onExit = (code: number | null) => {
          child.off('message', onMessage);
          reject(new Error(`an end of the bench ended with ${code}`));
        };
        child.once('message', onMessage);
        child.once('exit', onExit);
        child.send(order);
      }),
  };
}

async function read(client: HttpClient, path: string, kind: 'call' | 'stream', body?: Buffer): Promise<void> {
  const response = await client.send({ method: body ? 'POST' : 'GET', path, body }, kind);
  response.resume();
  await new Promise<void>((resolve, reject) => {
    response.once('end', resolve);
    response.once('close', () => reject(new Error(`${path}: the answer broke off`)));
  });
}

async function seconds(work: () => Promise<void>): Promise<number> {
  const from = performance.now();
  await work();
  return (performance.now() - from) / 1000;
}

export function transportTable(figures: TransportFigures): string {
  return table(
    ['way', 'download MB/s', 'upload MB/s', 'of 125 MB/s', 'request p50 ms', 'p99 ms', 'connect p50 ms', 'CPU s/GB'],
    names.map((name) => {
      const one = figures[name];
      return [
        name,
        ...[
          one.downloadMBps,
          one.uploadMBps,
          one.gigabitMBps,
          one.requestP50Ms,
          one.requestP99Ms,
          one.connectP50Ms,
          one.cpuSecondsPerGB,
        ].map(String),
      ];
    }),
  );
}
