/** An uninstallation ends what runs, waits, and leaves nothing that would hold anything up; or it changes nothing and says why. */
import { describe, expect, it } from 'vitest';
import { apiVersion, finalizers, labels, managedBy } from '../../../operator/api/labels.ts';
import { runDrain } from '../../../operator/cmd/run-drain.ts';
import { type LeaseRecord, recordName, recordText } from '../../../operator/core/allocation/record.ts';
import { type KubeObject, type Resource, resources } from '../../../operator/engine/types.ts';
import * as build from '../../support/builders.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

const namespace = 'gpulease-system';
const signal = new AbortController().signal;
const deployments: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'deployments',
  kind: 'Deployment',
  namespaced: true,
};
const base64 = (text: string) => Buffer.from(text).toString('base64');

async function drain(cluster: FakeCluster, ...args: string[]) {
  const said: string[] = [];
  const status = await runDrain(
    [...args, '--namespace', namespace],
    {},
    { say: (line) => said.push(line), connect: () => cluster, pollMs: 5 },
    signal,
  );
  return { status, said: said.join('\n') };
}

const leaseRecord = {
  ...build.record({ lease: { namespace: 'ml', name: 'train' }, quote: build.quoteRecord(), deposit: '720000' }),
};

async function storeRecord(cluster: FakeCluster, record: object) {
  await cluster.create(resources.secrets, {
    apiVersion: 'v1',
    kind: 'Secret',
    type: 'gpulease.dev/lease-record',
    metadata: { name: 'lease-uid', namespace, labels: { [labels.managedBy]: managedBy, [labels.leaseUid]: 'uid' } },
    data: { record: base64(JSON.stringify(record)) },
  } as KubeObject);
}

/** A lease that the operator lets go of once it is deleted and settled. */
async function consumer() {
  const cluster = fakeCluster();
  await cluster.create(resources.gpuLeases, {
    ...build.lease(),
    metadata: { name: 'train', namespace: 'ml', finalizers: [finalizers.lease] },
  } as KubeObject);
  await storeRecord(cluster, leaseRecord);
  await cluster.create(resources.gpuProviders, {
    ...build.provider(),
    metadata: { name: 'ams', finalizers: [finalizers.provider] },
  } as KubeObject);
  await cluster.create(resources.gpuOffers, {
    apiVersion,
    kind: 'GpuOffer',
    metadata: { name: 'ams-rtx4090', labels: { [labels.provider]: 'ams' } },
  } as KubeObject);
  await cluster.create(resources.gpuOffers, { apiVersion, kind: 'GpuOffer', metadata: { name: 'own' } } as KubeObject);
  await cluster.create(deployments, {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name: 'gpulease-operator', namespace },
    spec: { replicas: 2, selector: { matchLabels: { app: 'x' } } },
  } as KubeObject);
  return cluster;
}

/** What the operator would do, some time after. */
async function operatorEnds(cluster: FakeCluster) {
  for (;;) {
    const lease = await cluster.get(resources.gpuLeases, { namespace: 'ml', name: 'train' });
    if (lease?.metadata.deletionTimestamp) break;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  await cluster.patch(resources.gpuLeases, { namespace: 'ml', name: 'train' }, { metadata: { finalizers: null } });
  await new Promise((resolve) => setTimeout(resolve, 20));
  await cluster.delete(resources.secrets, { namespace, name: 'lease-uid' });
}

describe('before the operator is uninstalled', () => {
  it('leases are ended, settled, and finalizers and leftovers taken away', async () => {
    const cluster = await consumer();
    const [{ status, said }] = await Promise.all([
      drain(cluster, 'consumer', '--deployment', 'gpulease-operator'),
      operatorEnds(cluster),
    ]);
    expect(said).toContain('0.72 USDC');
    expect(said).toContain('lease ml/train');
    expect(said).toContain('All is settled');
    expect(status).toBe(0);
    expect(cluster.object(resources.gpuLeases, { namespace: 'ml', name: 'train' })).toBeUndefined();
    expect(cluster.object(resources.gpuProviders, { name: 'ams' })?.metadata.finalizers ?? []).toEqual([]);
    expect(cluster.object(resources.gpuOffers, { name: 'ams-rtx4090' })).toBeUndefined();
    expect(cluster.object(resources.gpuOffers, { name: 'own' })).toBeDefined();
    expect(cluster.object(deployments, { namespace, name: 'gpulease-operator' })).toMatchObject({
      spec: { replicas: 0 },
    });
  });

  it('an escrow that is not settled keeps it, though its lease has gone', async () => {
    const cluster = await consumer();
    await cluster.patch(resources.gpuLeases, { namespace: 'ml', name: 'train' }, { metadata: { finalizers: null } });
    await cluster.delete(resources.gpuLeases, { namespace: 'ml', name: 'train' });
    const { status, said } = await drain(
      cluster,
      'consumer',
      '--timeout-seconds',
      '1',
      '--deployment',
      'gpulease-operator',
    );
    expect(status).toBe(1);
    expect(said).toContain('Not settled');
    expect(said).toContain(build.leaseId);
    expect(cluster.object(deployments, { namespace, name: 'gpulease-operator' })).toMatchObject({
      spec: { replicas: 2 },
    });
    expect(cluster.object(resources.gpuProviders, { name: 'ams' })?.metadata.finalizers).toEqual([finalizers.provider]);
  });

  it.each([
    ['asked only to look', ['--check']],
    ['told to refuse', ['--on-open-leases', 'Refuse']],
  ])('%s, it changes nothing', async (_, more) => {
    const cluster = await consumer();
    const { status } = await drain(cluster, 'consumer', ...more, '--deployment', 'gpulease-operator');
    expect(status).toBe(1);
    expect(
      cluster.object(resources.gpuLeases, { namespace: 'ml', name: 'train' })?.metadata.deletionTimestamp,
    ).toBeUndefined();
    expect(cluster.object(deployments, { namespace, name: 'gpulease-operator' })).toMatchObject({
      spec: { replicas: 2 },
    });
  });

  it.each([
    ['told to refuse', ['--on-open-leases', 'Refuse']],
    ['after too long', ['--timeout-seconds', '1']],
  ])('%s, it names the command by which Helm keeps the release', async (_, more) => {
    const { status, said } = await drain(await consumer(), 'consumer', '--helm-release', 'gpu:12', ...more);
    expect(status).toBe(1);
    expect(said).toContain('helm rollback gpu 12 --namespace gpulease-system');
  });

  it('where no Helm is, it speaks of none', async () => {
    const { said } = await drain(await consumer(), 'consumer', '--on-open-leases', 'Refuse');
    expect(said).toContain('Refused');
    expect(said).not.toContain('rollback');
  });

  it('an API server that fails for a while is asked again', async () => {
    const cluster = await consumer();
    let asked = 0;
    const list = ((resource: Resource, ...rest: [object, AbortSignal]) => {
      const fails = resource.plural === 'gpuleases' && [1, 3].includes(++asked);
      return fails ? Promise.reject(new Error('no answer')) : cluster.list(resource, ...rest);
    }) as FakeCluster['list'];
    const shaky = { ...cluster, list } as FakeCluster;
    const [{ status, said }] = await Promise.all([drain(shaky, 'consumer'), operatorEnds(cluster)]);
    expect(said).toContain('no answer; trying again');
    expect(status).toBe(0);
  });

  it('nothing is there, and it is over at once', async () => {
    const cluster = fakeCluster();
    expect(await drain(cluster, 'consumer')).toMatchObject({ status: 0 });
  });

  it('what is no side is refused', async () => {
    await expect(drain(fakeCluster(), 'both')).rejects.toThrow('which side is it?');
  });
});

const allocation = {
  version: 1,
  leaseId: build.leaseId,
  chainId: 31337,
  escrow: build.escrowAddress,
  quote: { consumer: build.wallet, expiresAt: 0 },
  nodeName: 'gpu-1',
  state: 'Serving',
  createdAt: '',
  paidSeconds: 0,
  voucher: { servedSeconds: 42, last: false, signature: '0x' },
} as unknown as LeaseRecord;

async function provider(record: LeaseRecord = allocation) {
  const cluster = fakeCluster();
  const key = { name: recordName(record.leaseId), namespace };
  await cluster.create(resources.secrets, {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { ...key, labels: { [labels.managedBy]: managedBy, [labels.leaseId]: 'x' } },
    data: { record: base64(recordText(record)) },
  } as KubeObject);
  await cluster.create(resources.namespaces, {
    apiVersion: 'v1',
    kind: 'Namespace',
    metadata: { name: 'gl-1', labels: { [labels.tenant]: 'true' } },
  } as KubeObject);
  await cluster.create(resources.nodes, {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: 'gpu-1', labels: { [labels.offered]: 'true', keep: 'me' } },
    spec: {
      taints: [
        { key: labels.offered, value: 'true', effect: 'NoSchedule' },
        { key: 'other', effect: 'NoSchedule' },
      ],
    },
  } as KubeObject);
  const stored = () =>
    JSON.parse(
      Buffer.from(
        (cluster.object(resources.secrets, key) as { data?: { record: string } }).data!.record,
        'base64',
      ).toString(),
    ) as LeaseRecord;
  const store = (change: Partial<LeaseRecord>) =>
    cluster.patch(resources.secrets, key, { data: { record: base64(recordText({ ...stored(), ...change })) } });
  return { cluster, stored, store };
}

describe('before the gateway is uninstalled', () => {
  it('the gateway is told to drain, its end is waited for, and taints are taken off', async () => {
    const { cluster, store } = await provider();
    const controls = () => cluster.object(resources.configMaps, { namespace, name: 'gpulease-controls' });
    const gatewayEnds = async () => {
      while (!controls()) await new Promise((resolve) => setTimeout(resolve, 2));
      expect(controls()).toMatchObject({ data: { mode: 'HoldAndDrain', drainSeconds: '60' } });
      await cluster.delete(resources.namespaces, { name: 'gl-1' });
      await store({ state: 'Ended', tornDown: true, settled: true });
    };
    const [{ status, said }] = await Promise.all([drain(cluster, 'provider', '--drain-seconds', '60'), gatewayEnds()]);
    expect(status).toBe(0);
    expect(said).toContain('42 s vouched for');
    const node = cluster.object(resources.nodes, { name: 'gpu-1' }) as { spec?: { taints?: object } };
    expect(node.spec?.taints).toEqual([{ key: 'other', effect: 'NoSchedule' }]);
    expect(controls()).toBeUndefined();
  });

  it('what is not settled keeps it, and how to serve again is said', async () => {
    const { cluster } = await provider({ ...allocation, state: 'Suspended', reason: 'Unpaid', tornDown: true });
    const { status, said } = await drain(cluster, 'provider', '--timeout-seconds', '1');
    expect(status).toBe(1);
    expect(said).toContain('Suspended (Unpaid)');
    expect(said).toContain('delete configmap gpulease-controls serves again');
  });

  it('told to refuse, it touches neither nodes nor leases', async () => {
    const { cluster, stored } = await provider();
    expect(await drain(cluster, 'provider', '--on-open-leases', 'Refuse')).toMatchObject({ status: 1 });
    expect(stored().state).toBe('Serving');
    expect(cluster.object(resources.nodes, { name: 'gpu-1' })?.metadata.labels).toMatchObject({
      [labels.offered]: 'true',
    });
  });
});
