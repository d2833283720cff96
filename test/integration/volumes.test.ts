/**
 * Storage on real parts: Kubernetes' scheduler, its volume controllers and a StatefulSet on the consumer's side; a gateway, a
 * quota, the volume controllers and a kubelet that mounts on the provider's. The provider's disks are folders, in
 * PersistentVolumes that this test makes, as an administrator would; its class waits for the first pod.
 */
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { storageClassName } from '../../operator/api/labels.ts';
import { csiDriver, storageClass } from '../../operator/api/storage-class.ts';
import { remoteClaimName } from '../../operator/core/node/names.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import type { Claim, PersistentVolume } from '../../operator/core/node/storage.ts';
import { type KubeObject, type Resource, resources } from '../../operator/engine/types.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import type { Sandbox } from '../../operator/sandbox/sandbox.ts';
import { kubectl, lease, leaseManifest, namespaceReady, offersReady } from '../../operator/sandbox/scenario.ts';
import { eventually, quiet, scratch } from '../support/clusters.ts';
import { type LeasedNode, type LeaseLab, podOn, startLeaseLab } from '../support/leased-node.ts';
import { startSandbox } from '../support/watched-sandbox.ts';

const hollow = process.env.GPULEASE_NODES === 'hollow';
/** This machine may be busy with other things. */
const patience = 120;
const className = 'folders';
/** One for each claim that is mounted: what a claim leaves behind is not given to the next. */
const disks = ['disk-0', 'disk-1', 'disk-2', 'disk-3', 'disk-4'];
const statefulSets: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'statefulsets',
  kind: 'StatefulSet',
  namespaced: true,
};
type StoredClaim = Claim & KubeObject;
type StoredVolume = PersistentVolume & KubeObject;

let lab: LeaseLab;
let on: LeasedNode;

const claims = resources.persistentVolumeClaims;
const claimNamed = (name: string) => lab.consumer.get<StoredClaim>(claims, { namespace: lab.namespace, name });
const podNamed = (name: string) => lab.consumer.get<Pod>(resources.pods, { namespace: lab.namespace, name });
const volumeOf = (claim: Claim) =>
  lab.consumer.get<StoredVolume>(resources.persistentVolumes, { name: `pvc-${claim.metadata.uid}` });
const remoteOf = (at: LeasedNode, claim: Claim) =>
  lab.provider.get<StoredClaim>(claims, {
    namespace: at.tenant,
    name: remoteClaimName(claim.metadata.name, claim.metadata.uid!),
  });
const running = (name: string) =>
  eventually(async () => (await podNamed(name))?.status?.phase === 'Running', `pod ${name} to run`, patience);
const gone = async (what: string, get: () => Promise<unknown>) =>
  eventually(async () => (await get()) === undefined, `${what} to go`, patience);
const says = async (name: string): Promise<string> => (await lab.kubectl(['logs', name])).stdout.trim();
/** Reasons and messages of what was told about an object. */
async function told(kind: string, name: string): Promise<string> {
  const { stdout } = await lab.kubectl([
    ...['get', 'events', '--field-selector', `involvedObject.kind=${kind},involvedObject.name=${name}`],
    ...['-o', 'jsonpath={range .items[*]}{.reason}: {.message}{"\\n"}{end}'],
  ]);
  return stdout;
}

/** Says what it finds, and leaves something to be found. */
const script =
  'cat /data/value 2>/dev/null || echo empty; echo "kept by $HOSTNAME" > /data/value; trap "exit 0" TERM; while true; do sleep 0.2; done';
const claimSpec = (storage: string) => ({
  accessModes: ['ReadWriteOnce'],
  storageClassName,
  resources: { requests: { storage } },
});
const withClaim = (nodeName: string, name: string, claimName: string): Pod => {
  const pod = podOn(nodeName, lab.namespace, name, script, {
    volumes: [{ name: 'data', persistentVolumeClaim: { claimName } }],
  });
  pod.spec.containers[0]!.volumeMounts = [{ name: 'data', mountPath: '/data' }];
  return pod;
};

async function makeStatefulSet(): Promise<void> {
  const { spec } = podOn(on.name, lab.namespace, 'db', script, { restartPolicy: 'Always' });
  spec.containers[0]!.volumeMounts = [{ name: 'data', mountPath: '/data' }];
  await lab.consumer.create(statefulSets, {
    metadata: { name: 'db', namespace: lab.namespace },
    spec: {
      replicas: 1,
      serviceName: 'db',
      selector: { matchLabels: { app: 'db' } },
      template: { metadata: { labels: { app: 'db' } }, spec },
      volumeClaimTemplates: [{ metadata: { name: 'data' }, spec: claimSpec('50Mi') }],
    },
  } as KubeObject);
}
const deleteStatefulSet = () =>
  lab.consumer.delete(statefulSets, { namespace: lab.namespace, name: 'db' }, { propagationPolicy: 'Background' });

/** What an administrator of the provider's makes: a class without a provisioner, and folders of one of its nodes. */
const providerStorage = (dir: string, nodeName: string, folders: readonly string[]) => [
  {
    apiVersion: 'storage.k8s.io/v1',
    kind: 'StorageClass',
    metadata: { name: className },
    provisioner: 'kubernetes.io/no-provisioner',
    volumeBindingMode: 'WaitForFirstConsumer',
  },
  ...folders.map((name) => {
    const path = join(dir, name);
    mkdirSync(path, { recursive: true, mode: 0o777 });
    const here = { key: 'kubernetes.io/hostname', operator: 'In', values: [nodeName] };
    return {
      apiVersion: 'v1',
      kind: 'PersistentVolume',
      metadata: { name },
      spec: {
        capacity: { storage: '100Mi' },
        accessModes: ['ReadWriteOnce'],
        storageClassName: className,
        persistentVolumeReclaimPolicy: 'Retain',
        local: { path },
        nodeAffinity: { required: { nodeSelectorTerms: [{ matchExpressions: [here] }] } },
      },
    };
  }),
];

describe.skipIf(hollow)('storage of a leased node', { timeout: 400_000 }, () => {
  beforeAll(async () => {
    lab = await startLeaseLab('volumes');
    if (!lab.real) throw new Error('these tests need a real node: GPULEASE_NODES=hollow leaves them out');
    await applyManifests(lab.consumer, [storageClass, csiDriver] as never[], { fieldManager: 'test' });
    const manifests = providerStorage(lab.dir, lab.real.name, disks) as never[];
    await applyManifests(lab.provider, manifests, { fieldManager: 'test' });
    const storage = { className, bytes: 200 * 1024 ** 2 };
    on = await lab.lease('stores', {}, { storage });
  });
  afterAll(async () => {
    if (!lab) return;
    for (const name of disks) await lab.provider.delete(resources.persistentVolumes, { name });
    await lab.stop();
  });

  test('a StatefulSet finds its data when it comes back, and they go with its claim alone', async () => {
    await makeStatefulSet();
    await running('db-0');
    expect(await says('db-0')).toBe('empty');
    const claim = (await claimNamed('data-db-0'))!;
    expect(claim).toMatchObject({ status: { phase: 'Bound' }, spec: { volumeName: `pvc-${claim.metadata.uid}` } });
    expect(await volumeOf(claim)).toMatchObject({ status: { phase: 'Bound' } });
    const remote = (await remoteOf(on, claim))!;
    expect(remote).toMatchObject({ status: { phase: 'Bound' }, spec: { storageClassName: className } });
    const first = (await podNamed('db-0'))!.metadata.uid;
    const larger = { spec: { resources: { requests: { storage: '60Mi' } } } };
    const claimKey = { namespace: lab.namespace, name: 'data-db-0' };
    await expect(lab.consumer.patch(claims, claimKey, larger)).rejects.toThrow(/resize/);

    await deleteStatefulSet();
    await gone('pod db-0', () => podNamed('db-0'));
    await makeStatefulSet();
    await running('db-0');
    expect((await podNamed('db-0'))!.metadata.uid).not.toBe(first);
    expect(await says('db-0')).toBe('kept by db-0');
    expect(readFileSync(join(lab.dir, remote.spec.volumeName!, 'value'), 'utf8')).toContain('kept by db-0');

    // A claim that is deleted while it is used stays, and so does what it stores.
    await lab.consumer.delete(claims, { namespace: lab.namespace, name: 'data-db-0' });
    await eventually(
      async () => (await claimNamed('data-db-0'))?.metadata.deletionTimestamp !== undefined,
      'the claim to be going',
    );
    expect((await remoteOf(on, claim))?.metadata.deletionTimestamp).toBeUndefined();
    expect((await lab.kubectl(['exec', 'db-0', '--', 'cat', '/data/value'])).stdout).toContain('kept by db-0');

    await deleteStatefulSet();
    await gone('the claim', () => claimNamed('data-db-0'));
    await gone('its volume', () => volumeOf(claim));
    expect(await remoteOf(on, claim)).toBeUndefined();
    expect(await lab.provider.get(resources.persistentVolumes, { name: remote.spec.volumeName! })).toMatchObject({
      status: { phase: 'Released' },
    });
  });

  test('a claim of a pod’s own comes and goes with it', async () => {
    const pod = podOn(on.name, lab.namespace, 'scratch', script, {
      volumes: [{ name: 'data', ephemeral: { volumeClaimTemplate: { spec: claimSpec('50Mi') } } }],
    });
    pod.spec.containers[0]!.volumeMounts = [{ name: 'data', mountPath: '/data' }];
    await lab.consumer.create(resources.pods, pod);
    await running('scratch');
    expect(await says('scratch')).toBe('empty');
    const claim = (await claimNamed('scratch-data'))!;
    await lab.consumer.delete(resources.pods, { namespace: lab.namespace, name: 'scratch' });
    await gone('the claim', () => claimNamed('scratch-data'));
    expect(await remoteOf(on, claim)).toBeUndefined();
  });

  test('more than the lease may store is refused by its quota, and the claim says so', async () => {
    await lab.consumer.create(claims, {
      metadata: { name: 'much', namespace: lab.namespace },
      spec: claimSpec('150Mi'),
    } as KubeObject);
    await lab.consumer.create(claims, {
      metadata: { name: 'too-much', namespace: lab.namespace },
      spec: claimSpec('100Mi'),
    } as KubeObject);
    // The first takes room as soon as it is asked for, whether or not there is a disk of its size.
    await lab.consumer.create(resources.pods, withClaim(on.name, 'first', 'much'));
    await eventually(async () => (await claimNamed('much'))?.status?.phase === 'Bound', 'the claim', patience);
    await lab.consumer.create(resources.pods, withClaim(on.name, 'second', 'too-much'));
    await eventually(
      async () => /ProvisioningFailed: .*no room.*exceeded quota/.test(await told('PersistentVolumeClaim', 'too-much')),
      'the claim to say that there is no room',
      patience,
    );
    // Told first, and then taken back.
    const held = async () => (await claimNamed('too-much'))?.metadata.finalizers?.join();
    await eventually(async () => (await held()) === 'kubernetes.io/pvc-protection', 'the claim to be let go', patience);
    for (const name of ['first', 'second'])
      await lab.consumer.delete(resources.pods, { namespace: lab.namespace, name });
    for (const name of ['much', 'too-much']) {
      await lab.consumer.delete(claims, { namespace: lab.namespace, name });
      await gone(`claim ${name}`, () => claimNamed(name));
    }
  });

  test('a lease without storage says so on the claim, and takes nothing', async () => {
    const other = await lab.lease('stores-not');
    await lab.consumer.create(claims, {
      metadata: { name: 'nowhere', namespace: lab.namespace },
      spec: claimSpec('50Mi'),
    } as KubeObject);
    await lab.consumer.create(resources.pods, withClaim(other.name, 'waits', 'nowhere'));
    await eventually(
      async () => (await told('PersistentVolumeClaim', 'nowhere')).includes('offers no storage'),
      'the claim to say that there is none',
      patience,
    );
    expect((await podNamed('waits'))?.spec.nodeName).toBeUndefined();
    expect((await lab.provider.list(claims, { namespace: other.tenant })).items).toEqual([]);
    await lab.consumer.delete(resources.pods, { namespace: lab.namespace, name: 'waits' });
    await lab.consumer.delete(claims, { namespace: lab.namespace, name: 'nowhere' });
  });

  test('a cut of the wire deletes nothing and holds up nothing for ever; the end of the lease is told', async () => {
    const ends = await lab.lease('ends', {}, { storage: { className, bytes: 100 * 1024 ** 2 } });
    await lab.consumer.create(claims, {
      metadata: { name: 'data', namespace: lab.namespace },
      spec: claimSpec('50Mi'),
    } as KubeObject);
    await lab.consumer.create(resources.pods, withClaim(ends.name, 'writer', 'data'));
    await running('writer');
    const claim = (await claimNamed('data'))!;
    await lab.consumer.delete(resources.pods, { namespace: lab.namespace, name: 'writer' });
    await gone('the pod', () => podNamed('writer'));

    lab.wire.cut();
    await lab.consumer.create(claims, {
      metadata: { name: 'late', namespace: lab.namespace },
      spec: claimSpec('10Mi'),
    } as KubeObject);
    await lab.consumer.create(resources.pods, withClaim(ends.name, 'late', 'late'));
    await eventually(
      async () => (await told('PersistentVolumeClaim', 'late')).includes('ProviderUnreachable'),
      'the claim to say that nobody answers',
      patience,
    );
    expect((await claimNamed('data'))?.status?.conditions ?? []).toEqual([]);
    lab.wire.mend();
    await running('late');

    expect(lab.nodes.claims(ends.name)).toEqual([`${lab.namespace}/data`, `${lab.namespace}/late`]);
    await eventually(() => lab.nodes.remove(ends.name), 'the node to go', patience);
    await eventually(
      async () =>
        (await claimNamed('data'))?.status?.conditions?.some((c) => c.type === 'DataLost' && c.status === 'True') ===
        true,
      'the claim to say that its data are lost',
      patience,
    );
    // Its volume stays, so the scheduler knows of no node for its next pod; nobody makes an empty one.
    await lab.consumer.create(resources.pods, withClaim(on.name, 'again', 'data'));
    await eventually(
      async () => /FailedScheduling/.test(await told('Pod', 'again')),
      'the scheduler to find no place',
      patience,
    );
    expect(await volumeOf(claim)).toBeDefined();
    expect((await podNamed('again'))?.spec.nodeName).toBeUndefined();
    expect((await lab.provider.list(claims, { namespace: on.tenant })).items).toEqual([]);
    await lab.consumer.delete(resources.pods, { namespace: lab.namespace, name: 'again' });
    for (const name of ['data', 'late']) {
      await lab.consumer.delete(claims, { namespace: lab.namespace, name });
      await gone(`claim ${name}`, () => claimNamed(name));
    }
    await gone('its volume', () => volumeOf(claim));
  });
});

/** With escrow, operator and gateway as they are shipped: the flags of the gateway, and what people read at a lease's end. */
describe.skipIf(hollow)('storage of a whole lease', { timeout: 400_000 }, () => {
  const dir = scratch('volumes-lease');
  let sandbox: Sandbox;
  beforeAll(async () => {
    sandbox = await startSandbox({
      dir,
      report: quiet,
      voucherPeriodSeconds: 2,
      gatewayArgs: ['--storage-class', className, '--max-storage', '1Gi'],
    });
    if (sandbox.simulated) throw new Error('these tests need a real node: GPULEASE_NODES=hollow leaves them out');
    await namespaceReady(sandbox);
    await offersReady(sandbox);
  });
  afterAll(async () => {
    await sandbox?.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  test('a pod that names its lease by a label gets it; at the end the lease says what is lost', async () => {
    const { consumerCluster, providerCluster } = sandbox;
    const running = await lease(sandbox, [leaseManifest('train', 'RTX4090', '0.60')], quiet);
    const { namespace } = running.key;
    const { items: offered } = await providerCluster.list<KubeObject>(resources.nodes);
    const folders = offered.map(({ metadata }) => metadata.name);
    for (const name of folders)
      await applyManifests(providerCluster, providerStorage(dir, name, [`disk-of-${name}`]) as never[], {
        fieldManager: 'test',
      });
    const claimKey = { namespace, name: 'data' };
    const claim = () => consumerCluster.get<StoredClaim>(claims, claimKey);
    await consumerCluster.create(claims, { metadata: claimKey, spec: claimSpec('50Mi') } as KubeObject);
    await consumerCluster.create<Pod>(resources.pods, {
      metadata: { name: 'writer', namespace, labels: { 'gpulease.dev/lease': 'train' } },
      spec: {
        terminationGracePeriodSeconds: 1,
        containers: [
          {
            name: 'main',
            image: TOOLS_IMAGE,
            command: ['sh', '-c', script],
            volumeMounts: [{ name: 'data', mountPath: '/data' }],
          },
        ],
        volumes: [{ name: 'data', persistentVolumeClaim: { claimName: 'data' } }],
      },
    });
    const writer = { namespace, name: 'writer' };
    await eventually(
      async () => (await consumerCluster.get<Pod>(resources.pods, writer))?.status?.phase === 'Running',
      'the pod to run',
      patience,
    );
    expect((await claim())?.status?.phase).toBe('Bound');

    await consumerCluster.delete(resources.gpuLeases, running.key);
    const events = () => kubectl(sandbox, '-n', namespace, 'get', 'events', '-o', 'wide');
    await eventually(
      async () => (await events()).includes(`What this claim stores is lost with it: ${namespace}/data.`),
      'the lease to name the claim that loses its data',
      patience,
    );
    await eventually(
      async () => /LeaseEnding +persistentvolumeclaim\/data .*What this claim stores is lost/.test(await events()),
      'the claim to be told',
      patience,
    );
    await eventually(
      async () =>
        (await claim())?.status?.conditions?.some(({ type, status }) => type === 'DataLost' && status === 'True') ===
        true,
      'the claim to say that its data are lost',
      patience,
    );
    await consumerCluster.delete(claims, claimKey);
    await eventually(async () => (await claim()) === undefined, 'the claim to go', patience);
    await eventually(
      async () => (await consumerCluster.get(resources.gpuLeases, running.key)) === undefined,
      'the lease to go',
      patience,
    );
    await eventually(
      async () => (await providerCluster.list(claims)).items.length === 0,
      'the claim at the provider to go with its tenant',
      patience,
    );
    running.witness.stop();
  });
});
