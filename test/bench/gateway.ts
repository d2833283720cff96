/**
 * The gateway under load: so many requests a second for a minute, of which most read the offers, some ask for quotes and some
 * bring vouchers; and then many exec sessions at once. Every quote is signed, and its signature is checked here; every voucher is
 * signed here, and found stored when it is acknowledged. Requests are sent when they are due, whether or not earlier ones were
 * answered, so that a slow gateway shows as slow and not as less asked.
 *
 * Generator, gateway, API server, etcd and chain share this machine; what each of them used is told.
 */
import { once } from 'node:events';
import https from 'node:https';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Interface } from 'ethers';
import { type ChainKey, keyFromHex, newKeyHex } from '../../operator/adapters/chain/key.ts';
import {
  leaseIdOf,
  leaseRefOf,
  quoteFromJson,
  signAccess,
  signVoucher,
  verifyQuote,
} from '../../operator/adapters/chain/messages.ts';
import type { SignedQuote } from '../../operator/api/gateway.ts';
import type { Address, Hex, Hex32, MessageDomain } from '../../operator/api/messages.ts';
import { mockUsdc } from '../../operator/contracts/generated/mock-usdc.ts';
import { type RecordSecret, recordOfSecret } from '../../operator/controllers/provider/records.ts';
import { recordName } from '../../operator/core/allocation/record.ts';
import { costOf } from '../../operator/core/money/price.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { H100 } from '../../operator/sandbox/clusters/gpus.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import type { Report } from '../../operator/sandbox/processes.ts';
import { namespace, type Sandbox, startSandbox } from '../../operator/sandbox/sandbox.ts';
import { escrowClient, until } from '../../operator/sandbox/scenario.ts';
import { percentile, type Target, table, told } from './figures.ts';
import { profileArgs } from './lab.ts';
import { cpuSeconds, memoryOf } from './processes.ts';

export interface GatewayBenchOptions {
  readonly dir: string;
  readonly report: Report;
  readonly say: (line: string) => void;
  readonly perSecond: number;
  readonly seconds: number;
  readonly sessions: number;
  readonly profile?: string;
  readonly signal: AbortSignal;
  readonly atEnd: (work: () => Promise<void>) => void;
}

type Kind = 'offers' | 'quote' | 'voucher';

interface KindFigures {
  readonly count: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export interface GatewayFigures {
  readonly wantedPerSecond: number;
  /** Answered, of those that were sent in the time. */
  readonly reachedPerSecond: number;
  readonly seconds: number;
  readonly errors: number;
  readonly firstErrors: readonly string[];
  readonly all: KindFigures;
  readonly byKind: Readonly<Record<Kind, KindFigures>>;
  /** Cores. */
  readonly cores: Readonly<Record<'generator' | 'gateway' | 'providerPlane' | 'chain', number>>;
  readonly gatewayMB: { readonly before: number; readonly middle: number; readonly after: number };
  readonly quotesVerified: number;
  /** Of the vouchers: how many were not the same once more. */
  readonly vouchersAnew: number;
  /** Leases whose record was found to hold what was acknowledged last. */
  readonly leasesFoundStored: number;
  readonly sessions:
    | { readonly wanted: number; readonly open: number; readonly seconds: number; readonly gatewayMB: number }
    | string;
}

const leases = 20;
/** Less than the minute that a gateway allows. */
const aheadSeconds = 50;
/** Of anvil's accounts, which are the same on every run; the first four are the sandbox's own. */
const account = 5;
const accountAddress = '0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc';

interface Lease {
  readonly leaseId: Hex32;
  readonly session: ChainKey;
  token: string;
  openedAt: number;
  /** The highest that was sent, and that was acknowledged. */
  sent: number;
  vouched: number;
}

export async function gatewayBench(
  options: GatewayBenchOptions,
): Promise<{ figures: GatewayFigures; targets: Target[] }> {
  const { say, signal } = options;
  const sandbox = await startSandbox(
    {
      dir: options.dir,
      report: options.report,
      nodes: [{ name: 'gpu', model: H100, gpus: leases + 4 }],
      gatewayArgs: [
        // All comes from one address and one account here.
        ...['--requests-per-second', String(options.perSecond * 4), '--wallet-requests-per-second', '10000'],
        ...['--unproven-connections', '1000', '--known-consumer', accountAddress],
      ],
      nodeArgs: profileArgs(options.profile),
    },
    signal,
  );
  options.atEnd(() => sandbox.stop());
  await until(
    'GPUs on offer',
    120,
    async () =>
      (
        await sandbox.consumerCluster.list<KubeObject & { status?: { available?: number } }>(
          resources.gpuOffers,
          {},
          signal,
        )
      ).items.some((offer) => (offer.status?.available ?? 0) >= leases)
        ? true
        : undefined,
    signal,
  );
  const bench = await createBench(sandbox, signal);
  say(`${leases} leases are being opened`);
  for (let i = 0; i < leases; i++) await bench.open();
  say(`${options.perSecond} requests a second for ${options.seconds} s`);
  // Warms up what is compiled as it runs.
  await bench.load(Math.min(200, options.perSecond), 5);
  const pids = {
    generator: [process.pid],
    gateway: [sandbox.gateway.pid],
    providerPlane: Object.values(sandbox.provider.pids),
    chain: [sandbox.chain.pid],
  };
  const used = () =>
    Object.fromEntries(
      // What this process started is not the generator.
      Object.entries(pids).map(([name, list]) => [name, name === 'generator' ? ownSeconds() : cpuSeconds(list)]),
    ) as Record<keyof typeof pids, number>;
  const memory = () => told(memoryOf(sandbox.gateway.pid).resident / 1e6);
  const [cpuBefore, memoryBefore] = [used(), memory()];
  let middle = memoryBefore;
  const half = setTimeout(() => {
    middle = memory();
  }, options.seconds * 500);
  const run = await bench.load(options.perSecond, options.seconds);
  clearTimeout(half);
  const cpuAfter = used();
  await sleep(2000, undefined, { signal });
  const after = memory();
  const found = await bench.stored();
  const cores = Object.fromEntries(
    Object.entries(cpuAfter).map(([name, value]) => [
      name,
      told((value - cpuBefore[name as keyof typeof pids]) / run.seconds),
    ]),
  ) as Record<keyof typeof pids, number>;
  say(`${options.sessions} exec sessions at once`);
  const sessions = sandbox.simulated
    ? 'skipped: pods are simulated here'
    : await bench.sessions(options.sessions, () => memoryOf(sandbox.gateway.pid).resident);

  const figuresOf = (ms: readonly number[]): KindFigures => ({
    count: ms.length,
    p50Ms: told(percentile(ms, 0.5)),
    p99Ms: told(percentile(ms, 0.99)),
  });
  const figures: GatewayFigures = {
    wantedPerSecond: options.perSecond,
    reachedPerSecond: told((run.ms.offers.length + run.ms.quote.length + run.ms.voucher.length) / run.seconds),
    seconds: told(run.seconds),
    errors: run.errors,
    firstErrors: run.firstErrors,
    all: figuresOf(Object.values(run.ms).flat()),
    byKind: { offers: figuresOf(run.ms.offers), quote: figuresOf(run.ms.quote), voucher: figuresOf(run.ms.voucher) },
    cores,
    gatewayMB: { before: memoryBefore, middle, after },
    quotesVerified: run.quotesVerified,
    vouchersAnew: run.anew,
    leasesFoundStored: found,
    sessions,
  };
  return {
    figures,
    targets: [
      { what: 'requests answered a second', measured: figures.reachedPerSecond, atLeast: options.perSecond * 0.99 },
      { what: 'errors', measured: run.errors, atMost: 0 },
      { what: 'growth of the gateway’s memory, second half over first', measured: told(after / middle), atMost: 1.25 },
      ...(typeof sessions === 'string'
        ? []
        : [{ what: 'exec sessions open at once', measured: sessions.open, atLeast: options.sessions }]),
    ],
  };
}

const ownSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

async function createBench(sandbox: Sandbox, signal: AbortSignal) {
  const consumer = sandbox.chain.accounts[account]!.address as Address;
  const usdc = sandbox.deployment.tokens.USDC!.address;
  const client = await escrowClient(sandbox);
  const domain: MessageDomain = client.domain;
  const { hostname, port } = new URL(sandbox.gatewayUrl);
  const agent = new https.Agent({ keepAlive: true, maxSockets: 128, maxFreeSockets: 128, ca: sandbox.provider.caPem });
  const own: Lease[] = [];
  /** Vouchers that counted more than the one before. */
  let anew = 0;
  let refs = 0;

  function call(
    method: string,
    path: string,
    body?: object,
    token?: string,
  ): Promise<{ status: number; text: string }> {
    const payload = body === undefined ? undefined : JSON.stringify(body);
    return new Promise((resolve, reject) => {
      const request = https.request({
        ...{ host: hostname, port, agent, method, path, timeout: 30_000 },
        headers: {
          ...(payload === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }),
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        },
      });
      request.once('error', reject);
      request.once('timeout', () => request.destroy(new Error('no answer within 30 s')));
      request.once('response', (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.once('error', reject);
        response.once('end', () =>
          resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString('utf8') }),
        );
      });
      request.end(payload);
    });
  }

  async function good(method: string, path: string, body?: object, token?: string): Promise<string> {
    const { status, text } = await call(method, path, body, token);
    if (status !== 200) throw new Error(`${method} ${path}: ${status} ${text.slice(0, 200)}`);
    return text;
  }

  const askQuote = async (): Promise<SignedQuote> => {
    refs += 1;
    return JSON.parse(
      await good('POST', '/v1/quotes', {
        ...{ offerName: 'h100-sxm', consumer, leaseRef: leaseRefOf('bench', 'gateway', refs), chainId: domain.chainId },
        ...{ escrow: domain.escrow, token: usdc, gpus: 1, maxSeconds: 3600, startTimeoutSeconds: 600 },
      }),
    ) as SignedQuote;
  };

  const send = (from: string, to: string, data: string) =>
    sandbox.chain.rpc<Hex>('eth_sendTransaction', { from, to, data, gas: '0x1e8480' });
  await send(consumer, usdc, new Interface(mockUsdc.abi).encodeFunctionData('mint', [consumer, 1_000_000_000n]));
  const approve = client.calls.approve(usdc);
  await send(consumer, approve.to, approve.data);

  async function tokenOf(leaseId: Hex32, session: ChainKey): Promise<string> {
    refs += 1;
    const message = {
      provider: sandbox.providerAddress,
      audienceUrl: sandbox.gatewayUrl,
      nonce: `0x${refs.toString(16).padStart(64, '0')}` as Hex32,
      expiresAt: Math.floor(Date.now() / 1000) + 120,
    };
    const { signature } = await signAccess(session, domain, { ...message, leaseId });
    const text = await good('POST', `/v1/leases/${leaseId}/token`, { ...message, signature });
    return (JSON.parse(text) as { token: string }).token;
  }

  async function oneQuote(): Promise<boolean> {
    const signed = await askQuote();
    return verified(signed);
  }

  const verified = async (signed: SignedQuote): Promise<boolean> => {
    const message = quoteFromJson(signed.quote as never);
    if (message.provider.toLowerCase() !== sandbox.providerAddress.toLowerCase())
      throw new Error(`a quote of ${message.provider}`);
    await verifyQuote(domain, { message, signature: signed.signature as Hex });
    return true;
  };

  async function oneVoucher(lease: Lease): Promise<void> {
    // A second more each time, so that each is another write; as far as the gateway lets a clock run ahead.
    const most = Math.floor(Date.now() / 1000) - lease.openedAt + aheadSeconds;
    const servedSeconds = Math.min(lease.sent + 1, most);
    if (servedSeconds > lease.sent) anew += 1;
    lease.sent = servedSeconds;
    const { signature } = await signVoucher(lease.session, domain, {
      leaseId: lease.leaseId,
      servedSeconds,
      last: false,
    });
    const text = await good(
      'POST',
      `/v1/leases/${lease.leaseId}/vouchers`,
      { servedSeconds, last: false, signature },
      lease.token,
    );
    const { servedSeconds: stored } = JSON.parse(text) as { servedSeconds: number };
    if (stored < servedSeconds) throw new Error(`${servedSeconds} s were sent, ${stored} s are stored`);
    lease.vouched = Math.max(lease.vouched, servedSeconds);
  }

  return {
    async open(): Promise<void> {
      const session = keyFromHex(newKeyHex());
      const signed = await askQuote();
      const quote = quoteFromJson(signed.quote as never);
      const deposit = costOf(quote.maxSeconds, quote.gpus, quote.pricePerGpuHour) - 1n;
      const open = client.calls.open({ message: quote, signature: signed.signature as Hex }, session.address, deposit);
      await send(consumer, open.to, open.data);
      const leaseId = leaseIdOf(quote.consumer, quote.leaseRef);
      await until(
        'an allocation',
        60,
        async () => ((await call('POST', '/v1/leases', signed)).status === 200 ? true : undefined),
        signal,
      );
      const token = await tokenOf(leaseId, session);
      const { openedAt } = (await client.lease(leaseId))!;
      own.push({ leaseId, session, token, openedAt, sent: 0, vouched: 0 });
    },

    async load(perSecond: number, seconds: number) {
      const ms: Record<Kind, number[]> = { offers: [], quote: [], voucher: [] };
      let errors = 0;
      let quotesVerified = 0;
      anew = 0;
      const firstErrors: string[] = [];
      const open = new Set<Promise<void>>();
      const total = perSecond * seconds;
      const startedAt = performance.now();
      const one = async (index: number, dueAt: number): Promise<void> => {
        const slot = index % 20;
        const kind: Kind = slot === 7 ? 'quote' : slot === 13 ? 'voucher' : 'offers';
        try {
          if (kind === 'offers') await good('GET', '/v1/offers');
          else if (kind === 'quote') quotesVerified += Number(await oneQuote());
          else await oneVoucher(own[Math.floor(index / 20) % own.length]!);
          // From when it was due: a generator that is late must not hide it.
          ms[kind].push(performance.now() - dueAt);
        } catch (error) {
          errors += 1;
          if (firstErrors.length < 3) firstErrors.push((error as Error).message.slice(0, 200));
        }
      };
      for (let sent = 0; sent < total; ) {
        signal.throwIfAborted();
        const due = Math.min(total, Math.floor(((performance.now() - startedAt) / 1000) * perSecond));
        for (; sent < due; sent++) {
          // A gateway that stands still must not fill this process.
          if (open.size >= 20_000) throw new Error('20,000 requests are unanswered');
          const work = one(sent, startedAt + (sent / perSecond) * 1000).finally(() => open.delete(work));
          open.add(work);
        }
        await sleep(2);
      }
      await Promise.all(open);
      return { ms, errors, firstErrors, quotesVerified, anew, seconds: (performance.now() - startedAt) / 1000 };
    },

    /** How many leases have a record with at least what was acknowledged. */
    async stored(): Promise<number> {
      let found = 0;
      for (const lease of own) {
        const secret = await sandbox.providerCluster.get<RecordSecret>(resources.secrets, {
          ...{ namespace, name: recordName(lease.leaseId) },
        });
        const stored = secret && recordOfSecret(secret).voucher?.servedSeconds;
        if (lease.vouched > 0 && stored !== undefined && stored >= lease.vouched) found += 1;
        else throw new Error(`${lease.vouched} s were acknowledged for ${lease.leaseId}, ${stored} s are stored`);
      }
      return found;
    },

    /** Each an upgraded connection with a shell that answers. */
    async sessions(count: number, memory: () => number) {
      const [lease] = own;
      const path = `/v1/leases/${lease!.leaseId}/kube/pods`;
      const made = await call(
        'POST',
        path,
        {
          ...{ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'shell' } },
          spec: {
            terminationGracePeriodSeconds: 0,
            containers: [
              { name: 'c', image: TOOLS_IMAGE, imagePullPolicy: 'IfNotPresent', command: ['sleep', '3600'] },
            ],
          },
        },
        lease!.token,
      );
      if (made.status !== 201) throw new Error(`the pod for exec: ${made.status} ${made.text.slice(0, 200)}`);
      await until(
        'the pod for exec',
        60,
        async () =>
          /"phase":"Running"/.test(await good('GET', `${path}/shell`, undefined, lease!.token)) ? true : undefined,
        signal,
      );
      const startedAt = performance.now();
      const sockets: Socket[] = [];
      let answered = 0;
      // A gateway's lease has 250 streams; 200 are asked for, and all must be open at the same time.
      const openOne = async () => {
        const request = https.request({
          ...{ host: hostname, port, agent: false, ca: sandbox.provider.caPem },
          path: `${path}/shell/exec?command=sh&command=-c&command=${encodeURIComponent('echo ready; cat')}&stdin=true&stdout=true`,
          headers: {
            authorization: `Bearer ${lease!.token}`,
            ...{ connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13' },
            'sec-websocket-key': Buffer.alloc(16, 1).toString('base64'),
            'sec-websocket-protocol': 'v5.channel.k8s.io',
          },
        });
        request.end();
        const [, socket, head] = (await Promise.race([
          once(request, 'upgrade'),
          once(request, 'response').then(([response]) => {
            throw new Error(`exec: ${(response as { statusCode?: number }).statusCode}`);
          }),
        ])) as [unknown, Socket, Buffer];
        sockets.push(socket);
        socket.on('error', () => undefined);
        let text = head.toString('latin1');
        while (!text.includes('ready'))
          text += String((await once(socket, 'data', { signal: AbortSignal.timeout(120_000) }))[0]);
        answered += 1;
      };
      const waves = 20;
      try {
        for (let from = 0; from < count; from += waves)
          await Promise.all(Array.from({ length: Math.min(waves, count - from) }, openOne));
        const open = sockets.filter((socket) => !socket.destroyed).length;
        return {
          wanted: count,
          open: Math.min(open, answered),
          seconds: told((performance.now() - startedAt) / 1000),
          gatewayMB: told(memory() / 1e6),
        };
      } finally {
        for (const socket of sockets) socket.destroy();
      }
    },
  };
}

export function gatewayTable(figures: GatewayFigures): string {
  const row = (name: string, { count, p50Ms, p99Ms }: KindFigures) => [
    name,
    String(count),
    String(p50Ms),
    String(p99Ms),
  ];
  const { cores, gatewayMB, sessions } = figures;
  return [
    table(
      ['', 'answered', 'p50 ms', 'p99 ms'],
      [
        row('offers', figures.byKind.offers),
        row('quotes, signed and verified', figures.byKind.quote),
        row('vouchers, verified and stored', figures.byKind.voucher),
        row('all', figures.all),
      ],
    ),
    '',
    `${figures.reachedPerSecond} of ${figures.wantedPerSecond} a second for ${figures.seconds} s, ${figures.errors} errors`,
    `cores: generator ${cores.generator}, gateway ${cores.gateway}, API server and etcd ${cores.providerPlane}, chain ${cores.chain}`,
    `memory of the gateway, MB: ${gatewayMB.before} before, ${gatewayMB.middle} in the middle, ${gatewayMB.after} after`,
    typeof sessions === 'string'
      ? `exec sessions: ${sessions}`
      : `exec sessions: ${sessions.open} of ${sessions.wanted} open at once after ${sessions.seconds} s; the gateway then has ${sessions.gatewayMB} MB`,
  ].join('\n');
}
