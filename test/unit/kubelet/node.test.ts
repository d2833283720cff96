import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { accessName, type GpuAccess } from '../../../operator/api/access.ts';
import type { Pod } from '../../../operator/core/node/pod.ts';
import { buildNode, type Node } from '../../../operator/core/node/virtual-node.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { beatSecondsOf } from '../../../operator/kubelet/node.ts';
import { served } from './fake-lease.ts';
import { aWhile, eventually, lease, nodeName, type World, world } from './world.ts';

let w: World;
beforeEach(() => {
  w = world();
});
afterEach(() => w.stop());

interface Heartbeat extends KubeObject {
  spec: { renewTime: string; leaseDurationSeconds: number; holderIdentity: string };
}
const heartbeat = () =>
  w.consumer.object<Heartbeat>(resources.leases, { namespace: 'kube-node-lease', name: nodeName });
const ready = () => w.node()?.status?.conditions?.find((c) => c.type === 'Ready');
const nodeWrites = () => w.consumer.writes.filter((r) => r.resource?.plural === 'nodes').length;

test.each([
  [1, 10],
  [500, 10],
  [750, 15],
  [1000, 20],
  [5000, 20],
])('of %d nodes each beats every %d s', (nodes, seconds) => {
  expect(beatSecondsOf(nodes, 10)).toBe(seconds);
});

describe('a virtual node', () => {
  test('registers with the lease’s capacity, and beats', async () => {
    await w.start();
    expect(w.node()).toMatchObject({
      metadata: { finalizers: ['gpulease.dev/node'], labels: { 'nvidia.com/gpu.product': 'NVIDIA-GeForce-RTX-4090' } },
      status: { allocatable: { 'nvidia.com/gpu': '2' }, addresses: [{ type: 'InternalIP', address: '127.0.0.1' }] },
    });
    expect(w.node()?.status?.daemonEndpoints?.kubeletEndpoint.Port).toBe(w.nodes.get(nodeName)?.state.port);
    await eventually(() => expect(ready()?.status).toBe('True'));
    expect(heartbeat()?.spec).toMatchObject({ leaseDurationSeconds: 40, holderIdentity: nodeName });
    const first = heartbeat()!.spec.renewTime;
    expect(first).toMatch(/\.\d{6}Z$/);
    await eventually(() => expect(heartbeat()!.spec.renewTime > first).toBe(true));
  });

  test('stops beating when it is not healthy, says why once, and comes back', async () => {
    await w.start();
    await eventually(() => expect(ready()?.status).toBe('True'));
    w.health = { ready: false, reason: 'Unpaid', message: 'The deposit is used up.' };
    w.nodes.get(nodeName)!.refresh();
    await eventually(() => expect(ready()).toMatchObject({ status: 'False', reason: 'Unpaid' }));
    const [beat, writes] = [heartbeat()!.spec.renewTime, nodeWrites()];
    await aWhile(800);
    expect(heartbeat()!.spec.renewTime).toBe(beat);
    expect(nodeWrites()).toBe(writes);
    w.health = { ready: true };
    w.nodes.get(nodeName)!.refresh();
    await eventually(() => expect(ready()?.status).toBe('True'));
    expect(heartbeat()!.spec.renewTime > beat).toBe(true);
  });

  test('writes nothing but its heartbeat while nothing changes', async () => {
    await w.start();
    await eventually(() => expect(ready()?.status).toBe('True'));
    await aWhile(300);
    const before = nodeWrites();
    await aWhile(800);
    expect(nodeWrites()).toBe(before);
  });

  test('makes its pods unready with itself, and ready again', async () => {
    await w.start();
    const pod = w.bind('web');
    await eventually(() => expect(w.remote(pod)).toBeDefined());
    w.say(pod, {
      phase: 'Running',
      conditions: [
        { type: 'ContainersReady', status: 'True' },
        { type: 'Ready', status: 'True' },
      ],
    });
    const podReady = () => w.pod('web')?.status?.conditions?.find((c) => c.type === 'Ready');
    await eventually(() => expect(podReady()?.status).toBe('True'));
    w.health = { ready: false, reason: 'ProviderUnreachable', message: 'silent' };
    w.nodes.get(nodeName)!.refresh();
    await eventually(() => expect(podReady()).toMatchObject({ status: 'False', reason: 'NodeNotReady' }));
    w.health = { ready: true };
    w.nodes.get(nodeName)!.refresh();
    await eventually(() => expect(podReady()?.status).toBe('True'));
  });

  test('is not ready before the provider has said which pods it runs', async () => {
    w.lease.cut = true;
    await w.start();
    await eventually(() => expect(ready()).toMatchObject({ status: 'False', reason: 'ProviderUnreachable' }));
    expect(heartbeat()).toBeUndefined();
    w.lease.cut = false;
    await eventually(() => expect(ready()?.status).toBe('True'));
  });

  test('adopts the Node of an earlier run: its port, and what others put there', async () => {
    await w.start();
    await eventually(() => expect(ready()?.status).toBe('True'));
    const { port } = w.nodes.get(nodeName)!.state;
    const uid = w.node()!.metadata.uid;
    await w.stop();
    w.consumer.change<Node & KubeObject>(resources.nodes, { name: nodeName }, (node) => {
      node.metadata.labels!.mine = 'kept';
      node.spec.taints!.push({ key: 'cordoned-by', effect: 'NoSchedule' });
      node.status!.conditions!.push({ type: 'GpuProblem', status: 'False' });
    });
    await w.start({ served: served(1) });
    await eventually(() => expect(w.node()?.status?.allocatable?.['nvidia.com/gpu']).toBe('1'));
    expect(w.node()?.metadata).toMatchObject({ uid, labels: { mine: 'kept' } });
    expect(w.node()?.spec.taints?.map((t) => t.key)).toContain('cordoned-by');
    expect(w.node()?.status?.conditions?.map((c) => c.type)).toContain('GpuProblem');
    expect(w.nodes.get(nodeName)!.state.port).toBe(port);
  });

  test('of which a provider claims too much is no longer listened to', async () => {
    await w.start();
    await eventually(() => expect(ready()?.status).toBe('True'));
    w.provider.seed<Pod & KubeObject>(
      resources.pods,
      ...Array.from({ length: 400 }, (_, i) => ({
        metadata: { name: `flood-${i}`, namespace: 'tenant' },
        spec: { containers: [] },
      })),
    );
    await eventually(() => expect(ready()).toMatchObject({ status: 'False', reason: 'ProviderMisbehaves' }));
  });
});

describe('draining', () => {
  const later = () => new Date(Date.now() + 60_000);
  const past = () => new Date(Date.now() - 1);
  const over = { reason: 'Expired', message: 'the term of 3600 s is over.' };
  const access = () => w.consumer.object<GpuAccess>(resources.gpuAccesses, { name: accessName })?.spec;

  test('cordons, evicts, and is done when nothing is left', async () => {
    await w.start();
    const pod = w.bind('web');
    await eventually(() => expect(w.remote(pod)).toBeDefined());
    w.say(pod, { phase: 'Running' });
    expect((await w.nodes.drain(nodeName, later(), over)).left).toBe(1);
    expect(w.node()?.spec.unschedulable).toBe(true);
    expect(w.node()?.status?.conditions?.find((c) => c.type === 'LeaseEnding')).toMatchObject({
      status: 'True',
      ...over,
    });
    // What is drained is still served, and billed by this condition.
    expect(ready()?.status).toBe('True');
    await eventually(() => expect(w.remote(pod)?.metadata.deletionTimestamp).toBeDefined());
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remote(pod)!.metadata.name });
    await eventually(() => expect(w.pod('web')).toBeUndefined());
    expect(await w.nodes.drain(nodeName, later(), over)).toEqual({ left: 0, blocked: [] });
  });

  test('waits for a PodDisruptionBudget until the deadline, and says so', async () => {
    await w.start();
    w.consumer.intercept((request) =>
      request.subresource === 'eviction'
        ? {
            code: 429,
            body: {
              kind: 'Status',
              code: 429,
              reason: 'TooManyRequests',
              message: "Cannot evict pod as it would violate the pod's disruption budget.",
              details: { causes: [{ reason: 'DisruptionBudget' }] },
            },
          }
        : undefined,
    );
    const pod = w.bind('web');
    await eventually(() => expect(w.remote(pod)).toBeDefined());
    const { blocked } = await w.nodes.drain(nodeName, later(), over);
    expect(blocked).toEqual([{ pod: 'team-a/web', message: expect.stringMatching(/disruption budget/) }]);
    expect(w.pod('web')?.metadata.deletionTimestamp).toBeUndefined();
    await w.nodes.drain(nodeName, past(), over);
    expect(w.pod('web')?.metadata.deletionTimestamp).toBeDefined();
    expect(w.pod('web')?.status?.conditions).toContainEqual(
      expect.objectContaining({ type: 'DisruptionTarget', status: 'True', reason: 'TerminationByKubelet' }),
    );
  });

  test('says on the node once that its lease ends', async () => {
    await w.start();
    await eventually(() => expect(ready()?.status).toBe('True'));
    await w.nodes.drain(nodeName, later(), over);
    const before = nodeWrites();
    await w.nodes.drain(nodeName, later(), over);
    await w.nodes.drain(nodeName, past(), over);
    expect(nodeWrites()).toBe(before);
  });

  test('lets no more pods be bound, also when the node is looked at again', async () => {
    await w.start();
    expect(access()?.nodes[nodeName]).toEqual({ lease: 'team-a/train', namespaces: ['team-a'] });
    await w.nodes.drain(nodeName, later(), over);
    w.nodes.get(nodeName)!.refresh();
    await aWhile(300);
    expect(access()?.nodes[nodeName]?.ending).toBe(true);
    expect(await w.nodes.remove(nodeName)).toBe(true);
    expect(access()?.nodes).toEqual({});
  });

  test('tells each pod that has not ended, and none of a DaemonSet', async () => {
    await w.start();
    w.bind('web');
    w.bind('done', (pod) => {
      pod.status = { phase: 'Succeeded' };
    });
    w.bind('daemon', (pod) => {
      pod.metadata.ownerReferences = [
        { apiVersion: 'apps/v1', kind: 'DaemonSet', name: 'd', uid: 'd', controller: true },
      ];
    });
    await eventually(() => expect(w.remotes()).toHaveLength(1));
    w.nodes.tellPods(nodeName, 'Warning', 'LeaseEndsSoon', 'in an hour');
    expect(w.told.filter((one) => one.reason === 'LeaseEndsSoon')).toEqual([
      { pod: 'team-a/web', type: 'Warning', reason: 'LeaseEndsSoon', message: 'in an hour' },
    ]);
  });
});

describe('removing the node of a lease that has ended', () => {
  test('ends pods of DaemonSets that wait for it, and no others', async () => {
    await w.start();
    const waiting = (name: string, target: string, kind = 'DaemonSet') =>
      w.consumer.seed(resources.pods, {
        metadata: {
          name,
          namespace: 'team-a',
          labels: { 'controller-revision-hash': 'x' },
          ownerReferences: [{ apiVersion: 'apps/v1', kind, name: 'd', uid: 'd', controller: true }],
        },
        spec: {
          containers: [],
          affinity: {
            nodeAffinity: {
              requiredDuringSchedulingIgnoredDuringExecution: {
                nodeSelectorTerms: [{ matchFields: [{ key: 'metadata.name', operator: 'In', values: [target] }] }],
              },
            },
          },
        },
      } as KubeObject);
    waiting('here', nodeName);
    waiting('elsewhere', 'worker-1');
    waiting('no-daemon', nodeName, 'StatefulSet');
    expect(await w.nodes.remove(nodeName)).toBe(true);
    expect(['here', 'elsewhere', 'no-daemon'].filter((name) => w.pod(name))).toEqual(['elsewhere', 'no-daemon']);
  });

  test('ends what is left of its pods, and leaves nothing behind', async () => {
    await w.start();
    const pod = w.bind('web');
    await eventually(() => expect(w.remote(pod)).toBeDefined());
    w.lease.cut = true;
    expect(await w.nodes.remove(nodeName)).toBe(true);
    expect(w.node()).toBeUndefined();
    expect(heartbeat()).toBeUndefined();
    expect(w.pod('web')).toBeUndefined();
    expect(w.nodes.get(nodeName)).toBeUndefined();
  });

  test('needs no earlier start, and can be repeated', async () => {
    await w.start();
    await w.stop();
    expect(await w.nodes.remove(nodeName)).toBe(true);
    expect(await w.nodes.remove(nodeName)).toBe(true);
  });

  test('touches no node of others', async () => {
    await w.start();
    const stranger = buildNode(
      { lease, leaseId: '0x1', providerName: 'p', offerName: 'o', capacityType: 'Spot' },
      served(),
    );
    w.consumer.seed(resources.nodes, { ...stranger, metadata: { name: 'worker-1' } } as KubeObject);
    expect(await w.nodes.remove('worker-1')).toBe(true);
    expect(w.consumer.object(resources.nodes, { name: 'worker-1' })).toBeDefined();
  });
});
