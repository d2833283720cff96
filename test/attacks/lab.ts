/**
 * Where the attacks are tried: a sandbox of the real parts with an honest lease on it (`ml/train`, through the operator), and
 * mallory, a consumer with an escrow of its own who speaks to the gateway itself.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Interface } from 'ethers';
import { keyFromHex, newKeyHex } from '../../operator/adapters/chain/key.ts';
import { verifyRegistration } from '../../operator/adapters/chain/link-proofs.ts';
import { leaseIdOf, leaseRefOf, quoteFromJson } from '../../operator/adapters/chain/messages.ts';
import { selfSigned, spkiSha256 } from '../../operator/adapters/gateway/certificate.ts';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { connectGateway } from '../../operator/adapters/provider/gateway-client.ts';
import type { SignedQuote } from '../../operator/api/gateway.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import { audienceOf } from '../../operator/api/link.ts';
import type { Address, Hex, Hex32, MessageDomain } from '../../operator/api/messages.ts';
import type { GpuOffer } from '../../operator/api/offer.ts';
import type { GpuProvider } from '../../operator/api/provider.ts';
import { linkPlaceText } from '../../operator/cmd/link-place.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import { mockUsdc } from '../../operator/contracts/generated/mock-usdc.ts';
import { tenantNamespace } from '../../operator/core/allocation/record.ts';
import { costOf } from '../../operator/core/money/price.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import { freePorts, type Report } from '../../operator/sandbox/processes.ts';
import { type Sandbox, startSandbox } from '../../operator/sandbox/sandbox.ts';
import {
  escrowClient,
  leaseManifest,
  minimal,
  namespaceReady,
  offersReady,
  type Running,
  until,
} from '../../operator/sandbox/scenario.ts';
import { startLinkListener } from '../../operator/wire/link-listener.ts';
import { createLinks } from '../../operator/wire/links.ts';
import { systemTiming } from '../../operator/wire/timing.ts';
import { memoryOf } from '../bench/processes.ts';
import { forgery } from './attacks/provider.ts';
import { type Liar, startLiar } from './liar.ts';
import { access, ask, type Deceived, type Party, type Real, type Target, voucher } from './target.ts';

export interface Lab {
  readonly sandbox: Sandbox;
  readonly target: Target;
  stop(): Promise<void>;
}

/** Of anvil's accounts; the first four are the sandbox's own. */
const malloryAccount = 5;

export async function startLab(dir: string, report: Report, signal: AbortSignal): Promise<Lab> {
  const [liarPort = 0, linkPort = 0] = await freePorts(2);
  const carrier = await startCarrier(linkPort);
  const sandbox = await startSandbox(
    {
      dir,
      report,
      gpus: { h100: 1, rtx4090: 3 },
      // Under the second one a provider that lies stands before its gateway.
      gatewayArgs: ['--public-url', `https://127.0.0.1:${liarPort}`, '--dial-out', carrier.place],
    },
    signal,
  ).catch(async (error: unknown) => {
    await carrier.stop();
    throw error;
  });
  let timer: NodeJS.Timeout | undefined;
  let liar: Liar | undefined;
  let honest: Running | undefined;
  const stop = async () => {
    clearInterval(timer);
    honest?.witness.stop();
    await liar?.stop();
    await carrier.stop();
    await sandbox.stop();
  };
  try {
    await namespaceReady(sandbox, signal);
    await offersReady(sandbox, signal);
    const train = await minimal(sandbox, report, signal);
    honest = train;
    const victimLeaseId = train.witness.lease!.status!.settlement!.leaseId as Hex32;
    const { domain } = await escrowClient(sandbox);
    liar = await startLiar(liarPort, sandbox.gatewayUrl);
    await until('the gateway to dial out', 60, async () => carrier.isLinked() || undefined, signal);
    report('mallory opens an escrow of its own');
    const mallory = await hostileLease(sandbox, signal);
    const [host = '', port] = sandbox.gatewayListens.split(':');
    const target: Target = {
      host,
      port: Number(port),
      publicUrl: sandbox.gatewayUrl,
      provider: sandbox.providerAddress,
      domain,
      mallory,
      victimLeaseId,
      stranger: keyFromHex(newKeyHex()),
      usdc: sandbox.deployment.tokens.USDC!.address,
      nowSeconds: () => Math.floor(Date.now() / 1000),
      token: () => tokenOf(target),
      async honest() {
        const { status, body } = await ask(target, { path: '/v1/offers' });
        if (status !== 200) return `offers: ${status} ${body.slice(0, 100)}`;
        const lease = train.witness.lease?.status?.conditions?.find(({ type }) => type === 'Ready');
        return lease?.status === 'True' ? undefined : `ml/train is not Ready: ${lease?.reason} ${lease?.message}`;
      },
      real: await realParts(sandbox, mallory, victimLeaseId, () => target, signal),
      carrier: { connect: (from) => carrier.connect(sandbox.providerAddress, from) },
      deceived: await deceivedConsumer(sandbox, liar, domain, signal),
    };
    // Mallory pays: what is refused here must be refused to who pays.
    const openedAt = target.nowSeconds();
    timer = setInterval(() => {
      void (async () => {
        const servedSeconds = Math.max(2, target.nowSeconds() - openedAt - 5);
        const body = await voucher(target, { servedSeconds });
        const token = await tokenOf(target);
        await ask(target, { method: 'POST', path: `/v1/leases/${mallory.leaseId}/vouchers`, body, token });
      })().catch(() => undefined);
    }, 30_000);
    return { sandbox, target, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Where gateways dial in, as at a relay or at an operator that means them no good. */
async function startCarrier(port: number) {
  const pair = await selfSigned(['127.0.0.1'], new Date());
  const url = `wss://127.0.0.1:${port}`;
  const now = () => new Date();
  const links = createLinks({ clock: systemTiming, now });
  const listener = await startLinkListener({
    ...{ host: '127.0.0.1', port, tls: pair, links, clock: systemTiming },
    keeper: { audiences: new Set([audienceOf(url)]), verify: verifyRegistration, refuses: () => undefined, now },
    log: { info: () => undefined, warn: () => undefined, debug: () => undefined },
  });
  return {
    place: linkPlaceText(url, spkiSha256(pair.cert)),
    isLinked: () => links.providers().length > 0,
    connect: (provider: Address, from: string) =>
      links.connect(provider.toLowerCase(), from, 20).then(({ connection }) => connection),
    async stop() {
      links.endAll();
      await listener.close();
    },
  };
}

const tokens = new Map<string, { token: string; renewAt: number }>();

async function tokenOf(target: Target): Promise<string> {
  const { leaseId } = target.mallory;
  const kept = tokens.get(leaseId);
  if (kept && kept.renewAt > target.nowSeconds()) return kept.token;
  const answer = await ask(target, {
    ...{ method: 'POST', path: `/v1/leases/${leaseId}/token` },
    body: await access(target),
  });
  if (answer.status !== 200) throw new Error(`mallory gets no token: ${answer.status} ${answer.body}`);
  const { token, expiresAt } = JSON.parse(answer.body) as { token: string; expiresAt: number };
  tokens.set(leaseId, { token, renewAt: expiresAt - 120 });
  return token;
}

export async function quoteFor(sandbox: Sandbox, consumer: Address, attempt: number): Promise<SignedQuote> {
  const { certificatePem } = { certificatePem: sandbox.provider.caPem };
  const client = connectGateway({
    endpoint: { url: sandbox.gatewayUrl, caBundle: Buffer.from(certificatePem).toString('base64') },
  } as never);
  return client.quote({
    offerName: 'rtx4090',
    consumer,
    leaseRef: leaseRefOf('mallory', 'lease', attempt),
    chainId: sandbox.chain.chainId,
    escrow: sandbox.deployment.escrow,
    token: sandbox.deployment.tokens.USDC!.address,
    gpus: 1,
    maxSeconds: 3600,
    startTimeoutSeconds: 600,
  });
}

async function hostileLease(sandbox: Sandbox, signal: AbortSignal): Promise<Party> {
  const account = sandbox.chain.accounts[malloryAccount]!;
  const consumer = account.address as Address;
  const session = keyFromHex(newKeyHex());
  const usdc = sandbox.deployment.tokens.USDC!.address;
  const client = await escrowClient(sandbox);
  const send = (from: string, to: string, data: string) =>
    sandbox.chain.rpc<Hex>('eth_sendTransaction', { from, to, data, gas: '0x1e8480' });
  await send(consumer, usdc, new Interface(mockUsdc.abi).encodeFunctionData('mint', [consumer, 100_000_000n]));
  const approve = client.calls.approve(usdc);
  await send(consumer, approve.to, approve.data);
  const signed = await quoteFor(sandbox, consumer, 1);
  const quote = quoteFromJson(signed.quote as never);
  const open = client.calls.open(
    { message: quote, signature: signed.signature as Hex },
    session.address,
    costOf(quote.maxSeconds, quote.gpus, quote.pricePerGpuHour) - 1n,
  );
  await send(consumer, open.to, open.data);
  const leaseId = leaseIdOf(quote.consumer, quote.leaseRef);
  await until(
    'the escrow of mallory',
    30,
    async () => ((await client.lease(leaseId)) === undefined ? undefined : true),
    signal,
  );
  const at = { host: '127.0.0.1', port: Number(sandbox.gatewayListens.split(':')[1]) } as Target;
  await until(
    'the allocation of mallory',
    60,
    async () =>
      (await ask(at, { method: 'POST', path: '/v1/leases', body: signed })).status === 200 ? true : undefined,
    signal,
  );
  return { consumer, session, leaseId, quote: signed };
}

type Seen = KubeObject & { status?: Record<string, unknown> };

/** A GpuProvider of the consumer that is the liar, and what comes of it. */
async function deceivedConsumer(
  sandbox: Sandbox,
  liar: Liar,
  domain: MessageDomain,
  signal: AbortSignal,
): Promise<Deceived> {
  const { consumerCluster } = sandbox;
  const opened = new Interface(leaseEscrow.abi).getEvent('LeaseOpened')!.topicHash;
  const rail = { chainId: domain.chainId, escrow: domain.escrow, token: sandbox.deployment.tokens.USDC!.address };
  await applyManifests(
    consumerCluster,
    [
      {
        apiVersion: 'gpulease.dev/v1alpha1',
        kind: 'GpuProvider',
        metadata: { name: 'liar', labels: { liar: 'yes' } },
        spec: {
          endpoint: { url: liar.url, spkiSHA256: liar.spkiSHA256 },
          identity: { address: sandbox.providerAddress },
          payment: { rails: [{ ...rail, assetSymbol: 'USDC', maxEscrow: '100' }] },
          probe: { intervalSeconds: 2, timeoutSeconds: 2, failureThreshold: 1 },
        },
      } as never,
    ],
    { fieldManager: 'attacks' },
    signal,
  );
  const provider = async () => {
    const found = await consumerCluster.get<GpuProvider & KubeObject>(resources.gpuProviders, { name: 'liar' }, signal);
    if (!found) throw new Error('the GpuProvider liar is gone');
    return found;
  };
  const recovered = async () => {
    await until(
      'the liar to be believed again',
      60,
      async () =>
        (await provider()).status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True')
          ? true
          : undefined,
      signal,
    );
  };
  const leaseOf = (name: string) =>
    consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, { namespace: 'ml', name }, signal);
  const apply = (name: string) =>
    applyManifests(
      consumerCluster,
      [leaseManifest(name, 'RTX4090', '0.60', { providerSelector: { matchLabels: { liar: 'yes' } } })],
      { fieldManager: 'attacks' },
      signal,
    );
  let wishes = 0;
  let serving: Promise<void> | undefined;

  async function serve(): Promise<void> {
    await recovered();
    await apply('duped');
    await until(
      'the lease of the liar',
      120,
      async () =>
        (await leaseOf('duped'))?.status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True')
          ? true
          : undefined,
      signal,
    );
    await applyManifests(
      consumerCluster,
      [
        {
          apiVersion: 'v1',
          kind: 'Pod',
          metadata: { name: 'duped', namespace: 'ml', labels: { 'gpulease.dev/lease': 'duped' } },
          spec: {
            containers: [
              { name: 'c', image: TOOLS_IMAGE, imagePullPolicy: 'IfNotPresent', command: ['sleep', '3600'] },
            ],
          },
        } as KubeObject,
      ],
      { fieldManager: 'attacks' },
      signal,
    );
    await until(
      'the pod at the liar',
      60,
      async () => ((await pod())?.status?.phase === 'Running' ? true : undefined),
      signal,
    );
  }
  const pod = () => consumerCluster.get<Seen>(resources.pods, { namespace: 'ml', name: 'duped' }, signal);

  return {
    liar,
    provider,
    recovered,
    offers: async () => (await consumerCluster.list<GpuOffer & KubeObject>(resources.gpuOffers, {}, signal)).items,
    async escrows() {
      const logs = await sandbox.chain.rpc<unknown[]>('eth_getLogs', {
        ...{ address: domain.escrow, topics: [opened], fromBlock: '0x0', toBlock: 'latest' },
      });
      return logs.length;
    },
    forge: forgery(sandbox.chain.accounts[2]!.privateKey as Hex, domain),
    async wish() {
      wishes += 1;
      await apply(`wish-${wishes}`);
      return `wish-${wishes}`;
    },
    lease: leaseOf,
    async forget(name) {
      await consumerCluster.delete(resources.gpuLeases, { namespace: 'ml', name }, {}, signal);
      await until(
        `lease ${name} gone`,
        60,
        async () => ((await leaseOf(name)) === undefined ? true : undefined),
        signal,
      );
    },
    served() {
      serving ??= serve();
      return serving;
    },
    async node() {
      const name = (await leaseOf('duped'))?.status?.nodeName;
      return name === undefined ? undefined : consumerCluster.get<Seen>(resources.nodes, { name }, signal);
    },
    pod,
    foreignPods: async () =>
      (await consumerCluster.list(resources.pods, { namespace: 'kube-system' }, signal)).items.length,
    async events() {
      const list = { version: 'v1', plural: 'events', kind: 'Event', namespaced: true, group: '' };
      return (await consumerCluster.list<never>(list as never, {}, signal)).items;
    },
  };
}

async function realParts(
  sandbox: Sandbox,
  mallory: Party,
  victimLeaseId: Hex32,
  target: () => Target,
  signal: AbortSignal,
): Promise<Real> {
  const namespace = tenantNamespace(mallory.leaseId);
  const cluster = connectCluster({ name: 'provider', kubeconfig: sandbox.provider.kubeconfig });
  // As the gateway has it made: the account itself, and so whatever its role gives.
  const { status } = await cluster.createSubresource<{ status: { token: string } }>(
    resources.serviceAccounts,
    { namespace, name: 'tenant' },
    'token',
    { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 7200 } },
    signal,
  );
  async function raw(method: string, path: string, body: object | undefined, as: string | undefined) {
    const response = await cluster.raw(
      {
        ...{ method, path, headers: { 'content-type': 'application/json' } },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      },
      as === undefined ? {} : { as },
      signal,
    );
    let text = '';
    for await (const chunk of response) text += String(chunk);
    return { status: response.statusCode ?? 0, body: text };
  }
  let program: Promise<string> | undefined;

  /** A pod of mallory's that runs, without a GPU. */
  async function startProgram(): Promise<string> {
    const at = target();
    const path = `/v1/leases/${mallory.leaseId}/kube/pods`;
    const token = await at.token();
    const made = await ask(at, {
      ...{ method: 'POST', path, token },
      body: {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name: 'program' },
        spec: {
          terminationGracePeriodSeconds: 0,
          containers: [{ name: 'c', image: TOOLS_IMAGE, imagePullPolicy: 'IfNotPresent', command: ['sleep', '3600'] }],
        },
      },
    });
    if (made.status !== 201) throw new Error(`the pod of mallory: ${made.status} ${made.body}`);
    const name = 'program';
    await until(
      'the pod of mallory to run',
      60,
      async () => {
        const seen = await ask(at, { path: `${path}/${name}`, token });
        return (JSON.parse(seen.body) as { status?: { phase?: string } }).status?.phase === 'Running'
          ? true
          : undefined;
      },
      signal,
    );
    return name;
  }

  return {
    tenantNamespace: namespace,
    victimNamespace: tenantNamespace(victimLeaseId),
    nodeName: sandbox.nodes.find(({ gpus }) => gpus.length === 3)?.name ?? 'gpu-4090',
    operationsPort: sandbox.operations.gateway,
    asTenant: (method, path, body) => raw(method, path, body, status.token),
    asAdmin: (method, path, body) => raw(method, path, body, undefined),
    gatewayLog: () => readFileSync(sandbox.gateway.logFile, 'utf8'),
    gatewayMemory: () => memoryOf(sandbox.gateway.pid).resident,
    async exec(command) {
      program ??= startProgram();
      const name = await program;
      return execOutput(target(), name, command);
    },
  };
}

/** What a command in a pod wrote, through the gateway's upgrade, as WebSocket frames. */
async function execOutput(target: Target, name: string, command: readonly string[]): Promise<string> {
  const { default: https } = await import('node:https');
  const query = [...command.map((one) => `command=${encodeURIComponent(one)}`), 'stdout=true', 'stderr=true'].join('&');
  const token = await target.token();
  const bytes = await new Promise<Buffer>((resolve, reject) => {
    const request = https.request({
      ...{ host: target.host, port: target.port, rejectUnauthorized: false, agent: false },
      path: `/v1/leases/${target.mallory.leaseId}/kube/pods/${name}/exec?${query}`,
      headers: {
        authorization: `Bearer ${token}`,
        connection: 'Upgrade',
        upgrade: 'websocket',
        'sec-websocket-version': '13',
        'sec-websocket-key': Buffer.alloc(16, 1).toString('base64'),
        'sec-websocket-protocol': 'v5.channel.k8s.io',
      },
    });
    request.once('response', (response) => reject(new Error(`exec: ${response.statusCode}`)));
    request.once('error', reject);
    request.once('upgrade', (_response, socket, head) => {
      const chunks: Buffer[] = [head];
      const done = () => {
        socket.destroy();
        resolve(Buffer.concat(chunks));
      };
      socket.on('data', (chunk: Buffer) => chunks.push(chunk));
      socket.once('end', done);
      socket.once('error', done);
      socket.once('close', done);
      void sleep(60_000, undefined, { ref: false }).then(done);
    });
    request.end();
  });
  return outputOf(bytes);
}

/** Of unmasked frames: what came on the channels of output and errors. */
function outputOf(bytes: Buffer): string {
  const parts: Buffer[] = [];
  for (let at = 0; at + 2 <= bytes.length; ) {
    const opcode = bytes[at]! & 0x0f;
    let length = bytes[at + 1]! & 0x7f;
    at += 2;
    if (length === 126) {
      length = bytes.readUInt16BE(at);
      at += 2;
    } else if (length === 127) {
      length = Number(bytes.readBigUInt64BE(at));
      at += 8;
    }
    const payload = bytes.subarray(at, at + length);
    at += length;
    if (opcode === 2 && (payload[0] === 1 || payload[0] === 2)) parts.push(payload.subarray(1));
  }
  return Buffer.concat(parts).toString('utf8');
}
