import { beforeEach, expect, test } from 'vitest';
import type { Node, NodeHealth } from '../../../operator/core/node/virtual-node.ts';
import { nodeNameOf } from '../../../operator/core/node/virtual-node.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { keepNode } from '../../../operator/kubelet/node.ts';
import { manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';
import { served } from './fake-lease.ts';

const lease = { name: 'train', namespace: 'ml', uid: '11111111-2222-3333-4444-555555555555' };
const name = nodeNameOf(lease);
let cluster: FakeCluster;
let clock: ReturnType<typeof manualClock>;
beforeEach(() => {
  cluster = fakeCluster();
  clock = manualClock();
});

const node = () => cluster.object<Node & KubeObject>(resources.nodes, { name })!;
const ready = () => node().status?.conditions?.find((one) => one.type === 'Ready');
const keep = (health: NodeHealth, cached?: Node) =>
  keepNode(
    { cluster, clock, kubeletVersion: 'v1', address: '10.0.0.1', heartbeatLastsSeconds: 40 },
    {
      lease,
      leaseId: `0x${'1'.repeat(64)}`,
      providerName: 'ams',
      offerName: 'ams-4090',
      capacityType: 'OnDemand',
      allowedNamespaces: ['ml'],
      served: served(1),
      healthy: () => health,
    },
    10250,
    health,
    cached,
    new AbortController().signal,
  );

test('a node comes back only when what it served before is counted', async () => {
  await keep({ ready: true });
  clock.pause(60_000);
  await keep({ ready: false, reason: 'ProviderUnreachable' });
  const since = new Date(ready()!.lastTransitionTime!);
  clock.pause(30_000);
  const asked: Date[] = [];
  const counted = (answer: boolean) => (notReadySince: Date) => {
    asked.push(notReadySince);
    return answer;
  };
  await keep({ ready: true, counted: counted(false) });
  expect(ready()).toMatchObject({ status: 'False', reason: 'Counting' });
  await keep({ ready: true, counted: counted(true) });
  expect(ready()?.status).toBe('True');
  expect(asked).toEqual([since, since]);
});

test('a process that has just started leaves a Ready node as it is', async () => {
  await keep({ ready: true });
  await keep({ ready: false, reason: 'ProviderUnreachable', undecided: true });
  expect(ready()?.status).toBe('True');
  await keep({ ready: false, reason: 'ProviderUnreachable' });
  expect(ready()?.status).toBe('False');
});

test('a process that slept does not move the time since when a node is not ready', async () => {
  await keep({ ready: true });
  const asItWas = node();
  await keep({ ready: false, reason: 'Unpaid' });
  const said = ready();
  clock.pause(60_000);
  await expect(keep({ ready: false, reason: 'ProviderUnreachable' }, asItWas)).rejects.toThrow('modified');
  expect(ready()).toEqual(said);
});
