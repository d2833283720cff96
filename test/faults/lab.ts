/**
 * A sandbox in which everything can be broken: each way from one part to another leads through a wire that can be cut,
 * the operator stops where it is told to, and what dies by accident is started again as a Deployment would.
 *
 * One lease, `ml/train`, is served all the time, with a pod that runs and two that have ended. Scenarios break something
 * around it, and make leases of their own where the moment matters.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import type { Hex32 } from '../../operator/api/messages.ts';
import { type RecordSecret, recordOfSecret } from '../../operator/controllers/provider/records.ts';
import { recordName } from '../../operator/core/allocation/record.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import type { RealNode } from '../../operator/sandbox/clusters/node.ts';
import type { Plane, PlaneProgram } from '../../operator/sandbox/clusters/plane.ts';
import type { ManagedProcess, Report } from '../../operator/sandbox/processes.ts';
import { type Link, namespace, type Sandbox } from '../../operator/sandbox/sandbox.ts';
import {
  kubectl,
  leaseManifest,
  minimal,
  namespaceReady,
  offersReady,
  type Running,
  until,
} from '../../operator/sandbox/scenario.ts';
import { type Witness, watchLease } from '../../operator/sandbox/watch-lease.ts';
import { type CuttingProxy, startCuttingProxy } from '../support/cutting-proxy.ts';
import type { FaultOrder } from '../support/faulty-operator.ts';
import { type FaultyRpc, startFaultyRpc } from '../support/faulty-rpc.ts';
import { startSandbox } from '../support/watched-sandbox.ts';

export const root = join(dirname(fileURLToPath(import.meta.url)), '../..');

export type Program = 'operator' | 'gateway';

export interface Lab {
  readonly sandbox: Sandbox;
  readonly wires: Readonly<Record<'operatorToCluster' | 'operatorToGateway' | 'gatewayToCluster', CuttingProxy>>;
  readonly rpc: Readonly<Record<Program, FaultyRpc>>;
  /** ml/train: served from the first scenario to the last. */
  readonly base: Running;
  /** UIDs of all leases that were ever made here, and their names. */
  readonly made: Map<string, string>;
  /** Programs that are to stay down: everything else is started again a second after it died. */
  readonly down: Set<string>;
  /** How often each program died without being asked to. */
  readonly deaths: Map<string, number>;
  readonly signal: AbortSignal;
  readonly report: Report;

  begin(name: string, options?: LeaseOptions): Promise<LabLease>;
  /** What the operator is to do when it passes a point. */
  order(order: FaultOrder): void;
  /** Resolves when the order's point was reached; with what it was about. */
  reached(seconds?: number): Promise<string>;
  /** Takes the order back: an operator that holds goes on. */
  release(): void;
  setClock(seconds: number): void;
  /** Which code the operator is started from, from now on. */
  useOperatorCode(entry: string | undefined): void;
  useGatewayCode(entry: string | undefined): void;
  plane(side: Side): Plane;
  /** SIGKILL, and nobody starts it again but `revive`. */
  kill(what: Target): Promise<void>;
  revive(what: Target): Promise<void>;
  /** Whatever is broken is mended, whatever is down is started. */
  restore(): Promise<void>;
  /** Seconds that the gateway has a signature for. */
  vouched(leaseId: string): Promise<number | undefined>;
  stop(): Promise<void>;
}

export type Side = 'consumer' | 'provider';
export type Target = Program | 'anvil' | `${Side}/${PlaneProgram}` | 'kubelet' | 'containerd';

export interface LeaseOptions {
  readonly model?: 'H100-SXM' | 'RTX4090';
  readonly spec?: object;
}

export interface LabLease {
  readonly name: string;
  readonly uid: string;
  readonly witness: Witness;
  ready(seconds?: number): Promise<void>;
  /** A pod on its node, running. */
  pod(name: string): Promise<void>;
  /** Waits until its Ready condition gives this reason. */
  says(reason: RegExp, seconds?: number): Promise<void>;
  delete(): Promise<void>;
  gone(seconds?: number): Promise<void>;
  /** Deletes it and waits until it is settled and gone. */
  end(): Promise<void>;
}

export const podManifest = (name: string, lease: string, command: string, gpu: boolean): KubeObject =>
  ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: 'ml' },
    spec: {
      nodeSelector: { 'gpulease.dev/lease': lease },
      tolerations: [
        { key: 'gpulease.dev/lease', operator: 'Exists' },
        { key: 'virtual-kubelet.io/provider', operator: 'Exists' },
      ],
      terminationGracePeriodSeconds: 1,
      restartPolicy: 'Never',
      containers: [
        {
          name: 'main',
          image: 'gpulease.local/busybox:1',
          command: ['sh', '-c', command],
          ...(gpu ? { resources: { limits: { 'nvidia.com/gpu': 1 } } } : {}),
        },
      ],
    },
  }) as unknown as KubeObject;

export const servesForEver = 'trap "exit 0" TERM; while true; do sleep 1 & wait $!; done';

export interface Pod extends KubeObject {
  spec: { nodeName?: string };
  status?: {
    phase?: string;
    reason?: string;
    message?: string;
    containerStatuses?: { restartCount: number; containerID?: string; state?: object }[];
  };
}

export interface LabOptions {
  readonly dir: string;
  readonly report: Report;
  readonly signal: AbortSignal;
  readonly gpus?: { readonly h100: number; readonly rtx4090: number };
  readonly voucherPeriodSeconds?: number;
  /** The operator as it is shipped, which takes no orders. */
  readonly shipped?: boolean;
}

/** What pods tolerate of a node that is not ready, where they say nothing: Kubernetes' 300 s, in little. */
const tolerationSeconds = 20;

export async function startLab({ dir, report, signal, ...options }: LabOptions): Promise<Lab> {
  const faults = join(dir, 'faults');
  rmSync(faults, { recursive: true, force: true });
  mkdirSync(faults, { recursive: true, mode: 0o700 });
  const code = { operator: entryFile(dir, 'operator'), gateway: entryFile(dir, 'gateway') };
  const own = {
    operator: join(root, options.shipped ? 'operator/cmd/operator.ts' : 'test/support/faulty-operator.ts'),
    gateway: join(root, 'operator/cmd/gateway.ts'),
  };
  code.operator.use(own.operator);
  code.gateway.use(own.gateway);
  const auditPolicy = join(dir, 'audit.json');
  writeFileSync(auditPolicy, JSON.stringify(policyOfOperators));

  const wires = new Map<Link, CuttingProxy>();
  const rpcs = new Map<Link, FaultyRpc>();
  const closing: (() => Promise<void>)[] = [];
  const witnesses: Witness[] = [];
  const down = new Set<string>();
  const deaths = new Map<string, number>();
  let sandbox: Sandbox | undefined;
  let stopped = false;

  const processOf = (program: string): ManagedProcess | undefined =>
    program === 'operator' ? sandbox?.operator : program === 'gateway' ? sandbox?.gateway : undefined;
  async function again(program: string): Promise<void> {
    deaths.set(program, (deaths.get(program) ?? 0) + 1);
    for (let wait = 1000; !stopped && !signal.aborted; wait = Math.min(wait * 2, 5000)) {
      await sleep(wait);
      const process_ = processOf(program);
      if (stopped || !process_ || down.has(program) || process_.running) return;
      try {
        await process_.restart();
        return;
      } catch (error) {
        report(`${program} did not start: ${(error as Error).message.split('\n')[0]}`);
      }
    }
  }

  const stop = async () => {
    stopped = true;
    for (const witness of witnesses) witness.stop();
    try {
      await sandbox?.stop();
    } finally {
      for (const close of closing.splice(0)) await close();
    }
  };
  try {
    sandbox = await startSandbox(
      {
        dir,
        report,
        voucherPeriodSeconds: options.voucherPeriodSeconds ?? 2,
        gpus: options.gpus,
        entries: { operator: [code.operator.file], gateway: [code.gateway.file] },
        // In the environment, where an earlier version does not stumble over a flag that it has not got.
        operatorEnv: { FAULT_DIR: faults, GPULEASE_SWEEP_SECONDS: '3' },
        gatewayArgs: ['--quote-seconds', '30', '--settle-patience', '5', '--requests-per-second', '1000'],
        planeArgs: {
          consumer: {
            'kube-apiserver': [
              `--default-not-ready-toleration-seconds=${tolerationSeconds}`,
              `--default-unreachable-toleration-seconds=${tolerationSeconds}`,
              `--audit-policy-file=${auditPolicy}`,
              `--audit-log-path=${auditLog(dir)}`,
            ],
          },
        },
        async route(link, url) {
          if (link === 'operator-to-chain' || link === 'gateway-to-chain') {
            const rpc = await startFaultyRpc(url);
            rpcs.set(link, rpc);
            closing.push(() => rpc.close());
            return rpc.url;
          }
          const wire = await startCuttingProxy(url);
          wires.set(link, wire);
          closing.push(() => wire.close());
          return wire.url;
        },
        onCrash: (program) => void again(program),
      },
      signal,
    );
    return await furnish(sandbox);
  } catch (error) {
    await stop();
    throw error;
  }

  async function furnish(sandbox: Sandbox): Promise<Lab> {
    await namespaceReady(sandbox, signal);
    await offersReady(sandbox, signal);
    const made = new Map<string, string>();
    const base = await minimal(sandbox, () => undefined, signal);
    witnesses.push(base.witness);
    made.set(base.witness.lease!.metadata.uid!, 'train');
    const apply = (...manifests: KubeObject[]) =>
      applyManifests(sandbox.consumerCluster, manifests, { fieldManager: 'kubectl' }, signal);
    if (!sandbox.simulated) {
      await apply(podManifest('succeeded', 'train', 'exit 0', false), podManifest('failed', 'train', 'exit 3', false));
      for (const [name, phase] of [
        ['succeeded', 'Succeeded'],
        ['failed', 'Failed'],
      ] as const)
        await until(
          `pod ${name}`,
          40,
          async () =>
            (await sandbox.consumerCluster.get<Pod>(resources.pods, { namespace: 'ml', name }))?.status?.phase === phase
              ? true
              : undefined,
          signal,
        );
    }
    const at = join(faults, 'at.json');
    const reachedFile = join(faults, 'reached');
    const wire = (link: Link) => wires.get(link)!;
    const rpc = (link: Link) => rpcs.get(link)!;
    const realNodes = () => sandbox.nodes.filter((node): node is RealNode => !node.simulated);

    const lab: Lab = {
      sandbox,
      base,
      made,
      down,
      deaths,
      signal,
      report,
      wires: {
        operatorToCluster: wire('operator-to-cluster'),
        operatorToGateway: wire('operator-to-gateway'),
        gatewayToCluster: wire('gateway-to-cluster'),
      },
      rpc: { operator: rpc('operator-to-chain'), gateway: rpc('gateway-to-chain') },
      plane: (side) => sandbox[side],

      async begin(name, { model = 'H100-SXM', spec = {} } = {}) {
        const key = { namespace: 'ml', name };
        const witness = await watchLease(sandbox.consumerCluster, key, () => new Date());
        witnesses.push(witness);
        const price = model === 'H100-SXM' ? '3' : '0.60';
        const [object] = await apply(leaseManifest(name, model, price, { drainTimeoutSeconds: 10, ...spec }));
        const uid = object!.metadata.uid!;
        made.set(uid, name);
        const condition = () => witness.lease?.status?.conditions?.find((c) => c.type === 'Ready');
        const told = () => `it says ${condition()?.reason}: ${condition()?.message}`;
        const wait = (what: string, seconds: number, look: () => Promise<true | undefined> | true | undefined) =>
          until(what, seconds, look, signal).catch((error: Error) => {
            throw new Error(`${error.message}; ${told()}`);
          });
        const lease: LabLease = {
          name,
          uid,
          witness,
          async ready(seconds = 90) {
            await wait(`lease ${name} Ready`, seconds, () => (condition()?.status === 'True' ? true : undefined));
          },
          async pod(podName) {
            await apply(podManifest(podName, name, servesForEver, true));
            // After a long outage the kubelets of a provider hear of new pods a minute late.
            await wait(`pod ${podName} Running`, 120, async () => {
              const pod = await sandbox.consumerCluster.get<Pod>(resources.pods, { namespace: 'ml', name: podName });
              return pod?.status?.phase === 'Running' ? true : undefined;
            });
          },
          async says(reason, seconds = 60) {
            await wait(`${reason} on ${name}`, seconds, () =>
              reason.test(condition()?.reason ?? '') ? true : undefined,
            );
          },
          async delete() {
            await sandbox.consumerCluster.delete(resources.gpuLeases, key, undefined, signal);
          },
          async gone(seconds = 120) {
            await wait(`lease ${name} settled and gone`, seconds, async () =>
              (await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, key))?.metadata.uid === uid
                ? undefined
                : true,
            );
          },
          async end() {
            await lease.delete();
            await lease.gone();
            witness.stop();
          },
        };
        return lease;
      },

      order(order) {
        rmSync(reachedFile, { force: true });
        writeFileSync(`${at}.new`, JSON.stringify(order));
        rmSync(at, { force: true });
        writeFileSync(at, JSON.stringify(order));
      },
      reached: (seconds = 60) =>
        until(
          'the operator reaching the point',
          seconds,
          () => {
            try {
              return readFileSync(reachedFile, 'utf8');
            } catch {
              return undefined;
            }
          },
          signal,
        ),
      release() {
        rmSync(at, { force: true });
      },
      setClock(seconds) {
        const file = join(faults, 'clock-seconds');
        if (seconds === 0) rmSync(file, { force: true });
        else writeFileSync(file, String(seconds));
      },
      useOperatorCode: (entry) => code.operator.use(entry ?? own.operator),
      useGatewayCode: (entry) => code.gateway.use(entry ?? own.gateway),

      async kill(what) {
        down.add(what);
        if (what === 'operator' || what === 'gateway') return processOf(what)!.kill('SIGKILL');
        if (what === 'anvil') return sandbox.chain.kill();
        if (what === 'kubelet' || what === 'containerd') {
          for (const node of realNodes()) await node.kill(what);
          return;
        }
        const [side, program] = what.split('/') as [Side, PlaneProgram];
        await sandbox[side].kill(program);
      },
      async revive(what) {
        down.delete(what);
        if (what === 'operator' || what === 'gateway') {
          if (!processOf(what)!.running) await processOf(what)!.restart();
          return;
        }
        if (what === 'anvil') return sandbox.chain.restart();
        if (what === 'kubelet' || what === 'containerd') {
          for (const node of realNodes()) await node.restart(what);
          return;
        }
        const [side, program] = what.split('/') as [Side, PlaneProgram];
        await sandbox[side].restart(program);
      },
      async restore() {
        lab.release();
        for (const one of wires.values()) one.mend({ forget: true });
        for (const one of rpcs.values()) one.behave();
        lab.setClock(0);
        code.operator.use(own.operator);
        code.gateway.use(own.gateway);
        // Stores before those who need them.
        const order = ['etcd', 'kube-apiserver', 'anvil', 'containerd', 'kubelet', 'gateway', 'operator'];
        const rank = (what: string) => order.findIndex((word) => what.endsWith(word));
        for (const what of [...down].sort((a, b) => rank(a) - rank(b))) await lab.revive(what as Target);
      },
      async vouched(leaseId) {
        const secret = await sandbox.providerCluster.get<RecordSecret>(resources.secrets, {
          namespace,
          name: recordName(leaseId as Hex32),
        });
        return secret && (recordOfSecret(secret).voucher?.servedSeconds ?? 0);
      },
      stop,
    };
    return lab;
  }
}

/** A program's entry point whose code can be exchanged between two starts: what an upgrade is. */
function entryFile(dir: string, name: string) {
  const file = join(dir, `${name}-entry.mjs`);
  return {
    file,
    use: (entry: string) => writeFileSync(file, `await import(${JSON.stringify(`file://${entry}`)});\n`),
  };
}

/** Who of the operators wrote what, and when: for those who must not write any more. */
const policyOfOperators = {
  apiVersion: 'audit.k8s.io/v1',
  kind: 'Policy',
  omitStages: ['RequestReceived'],
  rules: [
    {
      level: 'Metadata',
      users: ['gpulease-operator', 'gpulease-operator-2'],
      verbs: ['create', 'update', 'patch', 'delete', 'deletecollection'],
    },
    { level: 'None' },
  ],
};
const auditLog = (dir: string) => join(dir, 'audit.log');

export interface Write {
  readonly user: string;
  readonly verb: string;
  readonly what: string;
  readonly code: number;
  readonly at: number;
}

export function writesOfOperators(lab: Lab): Write[] {
  return readFileSync(auditLog(lab.sandbox.dir), 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const entry = JSON.parse(line) as {
        user: { username: string };
        verb: string;
        requestURI: string;
        responseStatus?: { code: number };
        requestReceivedTimestamp: string;
      };
      return {
        user: entry.user.username,
        verb: entry.verb,
        what: entry.requestURI.split('?')[0]!,
        code: entry.responseStatus?.code ?? 0,
        at: Date.parse(entry.requestReceivedTimestamp),
      };
    });
}

interface Conditioned extends KubeObject {
  status?: { conditions?: { type: string; status: string; reason?: string; message?: string }[] };
}

/** What is not as wanted just now; empty when all is. */
export async function unwanted(lab: Lab): Promise<string[]> {
  const { sandbox, base } = lab;
  const ready = (object: Conditioned | undefined) => object?.status?.conditions?.find((c) => c.type === 'Ready');
  const found: string[] = [];
  for (const program of ['operator', 'gateway'] as const) {
    const answer = await fetch(`http://127.0.0.1:${sandbox.operations[program]}/readyz`).catch(() => undefined);
    if (!answer?.ok) found.push(`the ${program} is not ready`);
  }
  const [provider, lease, node, pod] = await Promise.all([
    sandbox.consumerCluster.get<Conditioned>(resources.gpuProviders, { name: 'sandbox' }),
    sandbox.consumerCluster.get<Conditioned>(resources.gpuLeases, base.key),
    sandbox.consumerCluster.get<Conditioned>(resources.nodes, { name: base.witness.node! }),
    sandbox.consumerCluster.get<Pod>(resources.pods, { namespace: 'ml', name: 'hello-gpu' }),
  ]);
  if (ready(provider)?.status !== 'True') found.push(`provider: ${ready(provider)?.reason}`);
  if (ready(lease)?.status !== 'True') found.push(`lease train: ${ready(lease)?.reason}: ${ready(lease)?.message}`);
  if (ready(node)?.status !== 'True') found.push(`its node: ${ready(node)?.reason}: ${ready(node)?.message}`);
  if (pod?.status?.phase !== 'Running') found.push(`pod hello-gpu: ${pod?.status?.phase} ${pod?.status?.reason ?? ''}`);
  return found;
}

/**
 * Seconds in which the base lease's node was Ready and that nobody has signed for, at the moment after a voucher. Below nothing:
 * signed for, and not served.
 */
export async function unsigned(lab: Lab): Promise<number> {
  const vouched = await nextVoucher(lab);
  return lab.base.witness.readySeconds() - vouched;
}

/** Waits until more of the base lease is signed for than is now; with the seconds that are. */
export async function nextVoucher(lab: Lab): Promise<number> {
  const { leaseId } = lab.base.witness.lease!.status!.settlement!;
  const before = (await lab.vouched(leaseId))!;
  return until(
    'the next voucher',
    30,
    async () => {
      const vouched = (await lab.vouched(leaseId))!;
      return vouched > before ? vouched : undefined;
    },
    lab.signal,
  );
}

/** Waits until the lease is served again: everything Ready, the log can be read, and a new voucher was taken. */
export async function asWanted(lab: Lab, seconds = 90): Promise<void> {
  const { base, sandbox, signal } = lab;
  const { leaseId } = base.witness.lease!.status!.settlement!;
  let before: number | undefined;
  let last: string[] = [];
  await until(
    'all being as wanted',
    seconds,
    async () => {
      try {
        last = await unwanted(lab);
        if (last.length > 0) return undefined;
        const vouched = await lab.vouched(leaseId);
        before ??= vouched;
        if (vouched === undefined || vouched <= before!) {
          last = [`no voucher beyond ${before} s`];
          return undefined;
        }
        if (!sandbox.simulated) {
          const line = await kubectl(sandbox, 'logs', '-n', 'ml', 'hello-gpu', '--tail', '1');
          if (!/^GPU: GPU-/.test(line)) {
            last = [`the log says ${line}`];
            return undefined;
          }
        }
        return true;
      } catch (error) {
        last = [(error as Error).message.slice(0, 300)];
        return undefined;
      }
    },
    signal,
  ).catch((error: Error) => {
    throw new Error(`${error.message}: ${last.join('; ')}`);
  });
}
