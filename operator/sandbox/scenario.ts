/**
 * The main job, told as it happens: a lease from YAML to refund.
 *
 *   example 01-minimal: a 4090 paid in USDC, a pod that prints the UUID of its GPU
 *   meanwhile           an H100 paid in the network's own token, which carries no fee
 *   afterwards          a second lease in USDC, to show what later leases cost in gas
 */
import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { connectEscrow, type EscrowClient } from '../adapters/chain/escrow-client.ts';
import { applyManifests } from '../adapters/kube/apply-manifests.ts';
import type { GpuLease } from '../api/lease.ts';
import type { Address, Hex32 } from '../api/messages.ts';
import { type Escrow, heldIn } from '../core/money/escrow.ts';
import { feeOf, priceOf } from '../core/money/price.ts';
import { type KubeObject, resources } from '../engine/types.ts';
import { type Gas, gasOfAccount, gasOfLease } from './bill.ts';
import type { Report } from './processes.ts';
import { example, type Sandbox } from './sandbox.ts';
import { type Witness, watchLease } from './watch-lease.ts';

const run = promisify(execFile);

export interface LeaseFigures {
  asset: string;
  leaseReadySeconds: number;
  podRunningSeconds?: number;
  gpuUuids?: string[];
  servedSeconds: number;
  readySeconds: number;
  vouchers: number;
  /** Base units, as strings: they may not fit a JSON number. */
  deposit: string;
  paid: string;
  fee: string;
  refunded: string;
  held: string;
  gas: Gas & { approve?: number; withdraw?: number };
}

export interface Running {
  readonly key: { namespace: string; name: string };
  readonly witness: Witness;
  readonly appliedAt: number;
  readySeconds: number;
  podRunningSeconds?: number;
  gpuUuids?: string[];
}

/** kubectl against the consumer's API server, as any user. */
export async function kubectl(sandbox: Sandbox, ...args: string[]): Promise<string> {
  const { stdout } = await run(sandbox.kubectl, ['--kubeconfig', sandbox.consumer.kubeconfigPath, ...args], {
    maxBuffer: 16 << 20,
  });
  return stdout;
}

export class ScenarioError extends Error {}

/** Polls until the answer is not undefined. `what` is named when it takes too long. */
export async function until<T>(
  what: string,
  seconds: number,
  look: () => Promise<T | undefined> | T | undefined,
  signal?: AbortSignal,
): Promise<T> {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (Date.now() > deadline) throw new ScenarioError(`${what} did not happen within ${seconds} s`);
    await sleep(50, undefined, { signal });
  }
}

/** Waits until the operator has mirrored the provider's offers. */
export async function offersReady(sandbox: Sandbox, signal?: AbortSignal): Promise<void> {
  await until(
    'mirroring two offers',
    60,
    async () =>
      (await sandbox.consumerCluster.list(resources.gpuOffers, {}, signal)).items.filter(
        (o) => ((o as { status?: { available?: number } }).status?.available ?? 0) > 0,
      ).length >= 2
        ? true
        : undefined,
    signal,
  );
}

export async function lease(
  sandbox: Sandbox,
  manifests: readonly KubeObject[],
  report: Report,
  signal?: AbortSignal,
): Promise<Running> {
  const object = manifests.find((m) => m.kind === 'GpuLease')!;
  const key = { namespace: object.metadata.namespace!, name: object.metadata.name };
  const witness = await watchLease(sandbox.consumerCluster, key, () => new Date());
  witness.onProgress((text) =>
    report(`lease ${key.namespace}/${key.name}  ${text.length > 110 ? `${text.slice(0, 109)}…` : text}`),
  );
  const appliedAt = Date.now();
  await applyManifests(sandbox.consumerCluster, [...manifests], { fieldManager: 'kubectl' }, signal);
  await until(
    `lease ${key.name} becoming Ready`,
    120,
    () => (isReady(witness.lease) ? true : stalled(witness.lease)),
    signal,
  );
  return { key, witness, appliedAt, readySeconds: (Date.now() - appliedAt) / 1000 };
}

const condition = (object: GpuLease | undefined, type: string) =>
  object?.status?.conditions?.find((c) => c.type === type);
const isReady = (object: GpuLease | undefined) => condition(object, 'Ready')?.status === 'True';

function stalled(object: GpuLease | undefined): undefined {
  const why = condition(object, 'Stalled');
  if (why) throw new ScenarioError(`the lease waits for a person: ${why.reason}: ${why.message}`);
}

interface Pod extends KubeObject {
  status?: {
    phase?: string;
    reason?: string;
    message?: string;
    containerStatuses?: { state?: { running?: object } }[];
  };
}

/** Creates the pod and waits until its container runs. */
export async function pod(
  sandbox: Sandbox,
  running: Running,
  manifest: KubeObject,
  signal?: AbortSignal,
): Promise<void> {
  const key = { namespace: manifest.metadata.namespace, name: manifest.metadata.name };
  const created = Date.now();
  await applyManifests(sandbox.consumerCluster, [manifest], { fieldManager: 'kubectl' }, signal);
  await until(
    `pod ${key.name} Running`,
    60,
    async () => {
      const now = await sandbox.consumerCluster.get<Pod>(resources.pods, key, signal);
      if (now?.status?.phase === 'Failed')
        throw new ScenarioError(`pod ${key.name} failed: ${now.status.reason} ${now.status.message}`);
      return now?.status?.phase === 'Running' ? true : undefined;
    },
    signal,
  );
  running.podRunningSeconds = (Date.now() - created) / 1000;
  if (sandbox.simulated) return;
  const log = await until(
    `a line in the log of ${key.name}`,
    30,
    async () => (await kubectl(sandbox, '-n', key.namespace!, 'logs', key.name)).match(/^GPU: (.*)$/m)?.[1],
    signal,
  );
  running.gpuUuids = log.split(',').filter(Boolean);
  const known = sandbox.nodes.flatMap((n) => n.gpus.map((g) => g.uuid));
  for (const uuid of running.gpuUuids)
    if (!known.includes(uuid)) throw new ScenarioError(`the pod shows GPU ${uuid}, which no node has`);
  if (running.gpuUuids.length === 0) throw new ScenarioError('the pod was given no GPU');
}

/** Deletes the lease, waits until it is settled and gone, and checks the bill against the contract's own numbers. */
export async function settle(
  sandbox: Sandbox,
  running: Running,
  report: Report,
  signal?: AbortSignal,
): Promise<LeaseFigures> {
  const { key, witness } = running;
  const record = witness.lease!;
  const { leaseId } = record.status!.settlement!;
  await sandbox.consumerCluster.delete(resources.gpuLeases, key, undefined, signal);
  await until(
    `lease ${key.name} being settled and gone`,
    120,
    async () => ((await sandbox.consumerCluster.get(resources.gpuLeases, key, signal)) ? undefined : true),
    signal,
  );
  const client = await escrowClient(sandbox);
  const escrow = await client.lease(leaseId as Hex32);
  if (!escrow) throw new ScenarioError(`the chain has no escrow ${leaseId}`);
  checkBill(escrow, witness.readySeconds());
  const gas = await gasOfLease(sandbox.chain, sandbox.deployment.escrow, leaseId as Hex32);
  witness.stop();
  report(`lease ${key.namespace}/${key.name}  settled on chain: ${escrow.servedSeconds} s served`);
  return {
    asset: record.status!.quote!.assetSymbol,
    leaseReadySeconds: running.readySeconds,
    podRunningSeconds: running.podRunningSeconds,
    gpuUuids: running.gpuUuids,
    servedSeconds: escrow.servedSeconds,
    readySeconds: round(witness.readySeconds()),
    vouchers: witness.vouchers,
    deposit: String(escrow.deposit),
    paid: String(escrow.claimed - escrow.feeTaken),
    fee: String(escrow.feeTaken),
    refunded: String(escrow.refunded),
    held: String(heldIn(escrow)),
    gas,
  };
}

export const round = (seconds: number) => Math.round(seconds * 1000) / 1000;

const clients = new WeakMap<Sandbox, Promise<EscrowClient>>();
export function escrowClient(sandbox: Sandbox): Promise<EscrowClient> {
  const { chain, deployment } = sandbox;
  const known =
    clients.get(sandbox) ??
    connectEscrow({ rpcUrls: [chain.rpcUrl], chainId: chain.chainId, escrow: deployment.escrow });
  clients.set(sandbox, known);
  return known;
}

/** Exact to the base unit, and honest about time. */
export function checkBill(escrow: Escrow, readySeconds: number): void {
  const wrong = (what: string) => new ScenarioError(`the bill of ${escrow.leaseId} is wrong: ${what}`);
  if (!escrow.closed) throw wrong('the escrow is not closed');
  const price = priceOf(escrow.servedSeconds, escrow.gpus, escrow.pricePerGpuHour);
  const due = price < escrow.deposit ? price : escrow.deposit;
  if (escrow.claimed !== due) throw wrong(`${escrow.claimed} was claimed, ${due} is due for ${escrow.servedSeconds} s`);
  if (escrow.feeTaken !== feeOf(due, escrow.feeBps))
    throw wrong(`fee ${escrow.feeTaken}, ${feeOf(due, escrow.feeBps)} is due`);
  if (escrow.deposit !== escrow.claimed + escrow.refunded)
    throw wrong(`deposit ${escrow.deposit} is not claimed ${escrow.claimed} + refunded ${escrow.refunded}`);
  const off = Math.abs(escrow.servedSeconds - readySeconds);
  if (off > 2)
    throw wrong(`${escrow.servedSeconds} s were billed, but the node was Ready for ${readySeconds.toFixed(2)} s`);
}

/** deposits = paid + fee + refunded + held, over all escrows of a token, by the contract's own sums. */
export async function checkConservation(sandbox: Sandbox): Promise<Record<string, Record<string, string>>> {
  const client = await escrowClient(sandbox);
  const all: Record<string, Record<string, string>> = {};
  for (const [asset, token] of Object.entries(sandbox.deployment.tokens)) {
    const { deposited, paid, fee, refunded, held } = await client.totals(token.address);
    if (deposited !== paid + fee + refunded + held)
      throw new ScenarioError(
        `${asset} is not conserved: deposited ${deposited} ≠ paid ${paid} + fee ${fee} + refunded ${refunded} + held ${held}`,
      );
    all[asset] = {
      deposited: String(deposited),
      paid: String(paid),
      fee: String(fee),
      refunded: String(refunded),
      held: String(held),
    };
  }
  return all;
}

export const leaseManifest = (
  name: string,
  model: string,
  maxPrice: string,
  more: object = {},
  asset = 'USDC',
  count = 1,
): KubeObject =>
  ({
    apiVersion: 'gpulease.dev/v1alpha1',
    kind: 'GpuLease',
    metadata: { name, namespace: 'ml' },
    spec: { gpu: { models: [model], count }, pricing: { maxPricePerGpuHour: maxPrice, assetSymbol: asset }, ...more },
  }) as KubeObject;

/** The example's namespace, with the service account that its pods need. */
export async function namespaceReady(sandbox: Sandbox, signal?: AbortSignal): Promise<void> {
  await applyManifests(
    sandbox.consumerCluster,
    example('01-minimal', 'namespace.yaml'),
    { fieldManager: 'kubectl' },
    signal,
  );
  await until(
    'the service account of namespace ml',
    30,
    async () =>
      (await sandbox.consumerCluster.get(resources.serviceAccounts, { namespace: 'ml', name: 'default' }, signal))
        ? true
        : undefined,
    signal,
  );
}

/** The first lease and its pod, as `examples/01-minimal` has them. */
export async function minimal(sandbox: Sandbox, report: Report, signal?: AbortSignal): Promise<Running> {
  const running = await lease(sandbox, example('01-minimal', 'lease.yaml'), report, signal);
  report(`lease ml/train is Ready after ${running.readySeconds.toFixed(1)} s; creating pod ml/hello-gpu`);
  await pod(sandbox, running, example('01-minimal', 'pod.yaml')[0]!, signal);
  report(
    `pod ml/hello-gpu is Running after ${running.podRunningSeconds!.toFixed(1)} s${running.gpuUuids ? `, on ${running.gpuUuids.join(', ')}` : ' (pods are simulated)'}`,
  );
  return running;
}

/** The whole scenario of `--exit`; answers with the figures. */
export async function wholeScenario(sandbox: Sandbox, report: Report, serveSeconds: number, signal?: AbortSignal) {
  await namespaceReady(sandbox, signal);
  await offersReady(sandbox, signal);
  const first = await minimal(sandbox, report, signal);
  const native = await lease(sandbox, [leaseManifest('native', 'H100-SXM', '3', {}, 'GPU')], report, signal);
  const wait = async (running: Running, seconds: number) => {
    const left = seconds - running.witness.readySeconds();
    if (left > 0) await sleep(left * 1000, undefined, { signal });
  };
  report(`serving for ${serveSeconds} s`);
  await wait(first, Math.min(12, serveSeconds));
  await showTables(sandbox);
  await wait(first, serveSeconds + 0.5);
  const firstFigures = await settle(sandbox, first, report, signal);
  const second = await lease(sandbox, [leaseManifest('second', 'RTX4090', '0.60')], report, signal);
  await wait(native, serveSeconds + 0.5);
  const nativeFigures = await settle(sandbox, native, report, signal);
  await wait(second, 6);
  const secondFigures = await settle(sandbox, second, report, signal);

  const usdc = sandbox.deployment.tokens.USDC!.address;
  const account = await until(
    'the refund being withdrawn',
    30,
    async () => {
      const gas = await gasOfAccount(sandbox.chain, sandbox.deployment.escrow, usdc, sandbox.wallet as Address);
      return gas.withdraw.length > 0 ? gas : undefined;
    },
    signal,
  );
  firstFigures.gas = { ...firstFigures.gas, approve: account.approve[0], withdraw: account.withdraw[0] };
  if (account.withdraw.length > 1) secondFigures.gas = { ...secondFigures.gas, withdraw: account.withdraw.at(-1) };
  const totals = await checkConservation(sandbox);
  return { first: firstFigures, second: secondFigures, native: nativeFigures, totals };
}

export async function showTables(sandbox: Sandbox): Promise<void> {
  for (const args of [
    ['get', 'gpuproviders,gpuoffers'],
    ['get', 'gpuleases', '-A'],
    ['get', 'nodes'],
    ['get', 'pods', '-n', 'ml', '-o', 'wide'],
  ]) {
    process.stdout.write(`\n$ kubectl ${args.join(' ')}\n${await kubectl(sandbox, ...args)}`);
  }
  if (!sandbox.simulated)
    process.stdout.write(
      `\n$ kubectl logs -n ml hello-gpu --tail 2\n${await kubectl(sandbox, 'logs', '-n', 'ml', 'hello-gpu', '--tail', '2')}\n`,
    );
}
