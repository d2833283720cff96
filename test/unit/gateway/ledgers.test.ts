/** The ledger as it is stored: of two writers one loses, and reads again. */
import { expect, test } from 'vitest';
import { annotations } from '../../../operator/api/labels.ts';
import { createLedgers } from '../../../operator/controllers/provider/ledgers.ts';
import { recordName, tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { noRoom } from '../../../operator/core/allocation/room.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';
import { eventually, gpuNode, startProviderSide } from '../../support/provider-side.ts';

const sold = (gpus: number) => ({ ...noRoom, gpus, consumer: '0xc', offerName: 'o', since: '2026-01-01T00:00:00Z' });
const id = (number: number) => `0x${number.toString(16).padStart(64, '0')}` as const;

test('forty reservers of one node, at once: what they were told is what is stored, and no more than there is', async () => {
  const cluster = fakeCluster();
  cluster.latencyMs = 1;
  const ledgers = [createLedgers(cluster, 'home'), createLedgers(cluster, 'home')];
  const sellable = { ...noRoom, gpus: 8 };
  const outcomes = await Promise.all(
    Array.from({ length: 40 }, async (_, index) => {
      const { outcome } = await ledgers[index % 2]!.reserve('n', id(index), sold(1), sellable);
      return { index, outcome };
    }),
  );
  const told = outcomes.filter(({ outcome }) => outcome === 'reserved').map(({ index }) => id(index));
  expect(told).toHaveLength(8);
  expect(Object.keys((await ledgers[0]!.get('n')).entries).sort()).toEqual([...told].sort());

  await Promise.all(told.map((leaseId, index) => ledgers[index % 2]!.free('n', leaseId)));
  expect((await ledgers[0]!.get('n')).entries).toEqual({});
});

test('an answer that was lost is made good by asking again', async () => {
  const cluster = fakeCluster();
  const ledgers = createLedgers(cluster, 'home');
  const sellable = { ...noRoom, gpus: 1 };
  cluster.failNext({ method: 'POST', resource: 'configmaps', fail: 'answer-lost' });
  await expect(ledgers.reserve('n', id(1), sold(1), sellable)).rejects.toThrow();
  expect((await ledgers.reserve('n', id(1), sold(1), sellable)).outcome).toBe('held');
  expect((await ledgers.reserve('n', id(2), sold(1), sellable)).outcome).toBe('exhausted');
});

test('a ledger that cannot be read sells nothing', async () => {
  const cluster = fakeCluster();
  const ledgers = createLedgers(cluster, 'home');
  await ledgers.reserve('n', id(1), sold(1), { ...noRoom, gpus: 2 });
  cluster.change<KubeObject & { data: Record<string, string> }>(
    resources.configMaps,
    { namespace: 'home', name: 'ledger-n' },
    (map) => {
      map.data['ledger.json'] = '{}';
    },
  );
  await expect(ledgers.reserve('n', id(2), sold(1), { ...noRoom, gpus: 2 })).rejects.toThrow('version 1');
});

test('a reservation that lost its lease to another node is given back', async () => {
  const side = await startProviderSide({ objects: [gpuNode('node-a', 1), gpuNode('node-b', 1)], follower: true });
  try {
    const quote = await side.quote();
    const leaseId = side.open(quote);
    const stopWatching = side.cluster.intercept(({ method, resource }) => {
      if (method !== 'POST' || resource?.plural !== 'configmaps') return undefined;
      stopWatching();
      // Another replica decides otherwise, at the worst moment.
      side.cluster.change<KubeObject & { data: Record<string, string> }>(
        resources.secrets,
        { namespace: 'gpulease-system', name: recordName(leaseId) },
        (secret) => {
          const record = JSON.parse(Buffer.from(secret.data.record!, 'base64').toString()) as object;
          secret.data.record = Buffer.from(JSON.stringify({ ...record, nodeName: 'node-b' })).toString('base64');
        },
      );
      return undefined;
    });
    await side.post('/v1/leases', quote);
    const ledgers = createLedgers(side.cluster, 'gpulease-system');
    await eventually(
      async () => Object.keys((await ledgers.get('node-a')).entries),
      (held) => held.length === 0,
    );
    // Asked again, as consumers do, it is served where the record says.
    expect(await side.post('/v1/leases', quote)).toMatchObject({ status: 200, body: { state: 'Serving' } });
    expect(Object.keys((await ledgers.get('node-b')).entries)).toEqual([leaseId]);
    expect((await ledgers.get('node-a')).entries).toEqual({});
  } finally {
    await side.stop();
  }
});

test('of two leases that want one node, each is made for the node that it got', async () => {
  const side = await startProviderSide({ objects: [gpuNode('node-a', 1), gpuNode('node-b', 1)] });
  side.cluster.latencyMs = 5;
  try {
    const quotes = [await side.quote(), await side.quote()];
    const leaseIds = quotes.map((quote) => side.open(quote));
    const answers = await Promise.all(quotes.map((quote) => side.post('/v1/leases', quote)));
    for (const answer of answers) expect(answer).toMatchObject({ status: 200, body: { state: 'Serving' } });
    const ledgers = createLedgers(side.cluster, 'gpulease-system');
    const nodes = await Promise.all(
      leaseIds.map(async (leaseId) => {
        const namespace = await side.cluster.get<KubeObject>(resources.namespaces, { name: tenantNamespace(leaseId) });
        const node = namespace?.metadata.annotations?.[annotations.tenantNode] ?? '';
        expect(Object.keys((await ledgers.get(node)).entries)).toEqual([leaseId]);
        return node;
      }),
    );
    expect(nodes.toSorted()).toEqual(['node-a', 'node-b']);
  } finally {
    await side.stop();
  }
});
