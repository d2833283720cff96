import { describe, expect, test } from 'vitest';
import {
  contentOf,
  exposureOf,
  podOfSlice,
  recordedPorts,
  type SlicePlace,
  sliceOf,
} from '../../../../operator/core/node/endpoint-slices.ts';
import type { Pod } from '../../../../operator/core/node/pod.ts';
import type { Service } from '../../../../operator/core/node/service.ts';
import { pod as anyPod } from './builders.ts';

const ready = (status: 'True' | 'False' = 'True') => ({
  phase: 'Running',
  startTime: '2026-01-01T00:00:00Z',
  conditions: [{ type: 'Ready', status }],
});

const pod = (change: Partial<Pod> = {}): Pod => ({
  ...anyPod(
    {
      containers: [
        {
          name: 'main',
          ports: [
            { name: 'http', containerPort: 8080 },
            { name: 'dns', containerPort: 53, protocol: 'UDP' },
          ],
        },
      ],
      initContainers: [
        { name: 'mesh', restartPolicy: 'Always', ports: [{ name: 'admin', containerPort: 15_000 }] },
        { name: 'once', ports: [{ name: 'setup', containerPort: 1 }] },
      ],
    },
    { labels: { app: 'web', tier: 'front' } },
  ),
  status: ready(),
  ...change,
});

const service = (spec: Partial<Service['spec']> = {}, name = 'web'): Service => ({
  metadata: { name, namespace: 'team-a', uid: `${name}-uid` },
  spec: { clusterIP: '10.96.3.4', selector: { app: 'web' }, ports: [{ port: 80, targetPort: 8080 }], ...spec },
});

const place = (change: Partial<SlicePlace> = {}): SlicePlace => ({
  address: '10.0.0.9',
  family: 'IPv4',
  linked: true,
  portOf: (target) => 20_000 + (target % 1000),
  ...change,
});

const exposure = (its: Pod, ...services: Service[]) => exposureOf(its, services, 'IPv4');
const sliceFor = (its: Pod, of = service(), at = place()) => sliceOf(its, exposure(its, of).served[0]!, at)!;

describe('which ports of a pod stand behind a Service', () => {
  test.each<[string, Partial<Service['spec']>, number[]]>([
    ['the number that it targets', {}, [8080]],
    ['its own number, where it names no target', { ports: [{ port: 9090 }] }, [9090]],
    ['a port of the container, by name', { ports: [{ port: 80, targetPort: 'http' }] }, [8080]],
    ['a port of a sidecar, by name', { ports: [{ port: 80, targetPort: 'admin' }] }, [15_000]],
    ['not that of an init container that ends', { ports: [{ port: 80, targetPort: 'setup' }] }, []],
    ['not one of that name and another protocol', { ports: [{ port: 53, targetPort: 'dns' }] }, []],
    [
      'each once, however many lead there',
      {
        ports: [
          { name: 'a', port: 80, targetPort: 8080 },
          { name: 'b', port: 81, targetPort: 'http' },
        ],
      },
      [8080],
    ],
    ['none, where another label is wanted', { selector: { app: 'web', tier: 'back' } }, []],
    ['none, where the Service has no selector', { selector: {} }, []],
    ['none, where it is a name for another host', { type: 'ExternalName' }, []],
  ])('%s', (_name, spec, targets) => {
    expect(exposure(pod(), service(spec)).targets).toEqual(targets);
  });

  test.each<[string, Partial<Pod>]>([
    ['has ended', { status: { ...ready(), phase: 'Succeeded' } }],
    ['was never sent', { status: { phase: 'Pending' } }],
  ])('none of a pod that %s', (_name, change) => {
    expect(exposure(pod(change), service())).toEqual({ served: [], targets: [], refused: [] });
  });

  test('none of a DaemonSet’s pod', () => {
    const owned = pod();
    owned.metadata.ownerReferences = [
      { apiVersion: 'apps/v1', kind: 'DaemonSet', name: 'd', uid: 'u', controller: true },
    ];
    expect(exposure(owned, service()).targets).toEqual([]);
  });
});

describe('what an address cannot say is refused, and what to do instead is said', () => {
  const reasons = (its: Pod, ...services: Service[]) =>
    exposure(its, ...services).refused.map(({ about, reason }) => `${about} ${reason}`);

  test.each<[string, Partial<Service['spec']>, string[]]>([
    ['a headless Service', { clusterIP: 'None' }, ['Service HeadlessNotServed']],
    [
      'UDP, and TCP beside it is served',
      { ports: [{ port: 80 }, { port: 53, protocol: 'UDP' }] },
      ['Service ProtocolNotServed'],
    ],
    ['SCTP', { ports: [{ port: 9, protocol: 'SCTP' }] }, ['Service ProtocolNotServed']],
    ['a Service of the other address family', { ipFamilies: ['IPv6'] }, ['Service AddressFamilyNotServed']],
    ['nothing of one of both families', { ipFamilies: ['IPv6', 'IPv4'] }, []],
    ['nothing of a Service that does not select the pod', { clusterIP: 'None', selector: { app: 'db' } }, []],
  ])('%s', (_name, spec, wanted) => {
    expect(reasons(pod(), service(spec))).toEqual(wanted);
    for (const { message } of exposure(pod(), service(spec)).refused) expect(message).toMatch(/spec\.|selector/);
  });

  test('a pod’s own DNS name, where a headless Service would have given it one', () => {
    const its = pod();
    its.spec.subdomain = 'web';
    expect(reasons(its, service({ clusterIP: 'None' }))).toEqual(['Service HeadlessNotServed', 'Pod PodNameNotServed']);
    its.spec.subdomain = 'other';
    expect(reasons(its, service({ clusterIP: 'None' }))).toEqual(['Service HeadlessNotServed']);
  });

  test('an operator at an IPv6 address serves IPv6', () => {
    expect(exposureOf(pod(), [service({ ipFamilies: ['IPv6'] })], 'IPv6').targets).toEqual([8080]);
    expect(sliceFor(pod(), service(), place({ family: 'IPv6', address: 'fd00::9' })).addressType).toBe('IPv6');
  });
});

describe('a slice', () => {
  test('is the operator’s address and port, for Kubernetes’ own to use and to leave alone', () => {
    const slice = sliceFor(
      pod(),
      service({ ports: [{ name: 'http', port: 80, targetPort: 8080, appProtocol: 'h2c' }] }),
    );
    expect(slice).toMatchObject({
      metadata: {
        namespace: 'team-a',
        labels: {
          'kubernetes.io/service-name': 'web',
          'endpointslice.kubernetes.io/managed-by': 'gpulease.dev',
        },
        ownerReferences: [{ apiVersion: 'v1', kind: 'Pod', name: 'web-0', uid: '3f1c' }],
      },
      addressType: 'IPv4',
      endpoints: [
        {
          addresses: ['10.0.0.9'],
          conditions: { ready: true, serving: true, terminating: false },
          nodeName: 'gpu-train-0123456789',
          targetRef: { kind: 'Pod', namespace: 'team-a', name: 'web-0', uid: '3f1c' },
        },
      ],
      ports: [{ name: 'http', protocol: 'TCP', port: 20_080, appProtocol: 'h2c' }],
    });
    expect(slice.metadata.name).toMatch(/^web-[0-9a-f]{20}$/);
  });

  test('has another name for another pod, Service or family', () => {
    const names = [
      sliceFor(pod()),
      sliceFor({ ...pod(), metadata: { ...pod().metadata, uid: 'other' } }),
      sliceFor(pod(), service({}, 'api')),
      sliceFor(pod(), service(), place({ family: 'IPv6' })),
    ].map(({ metadata }) => metadata.name);
    expect(new Set(names).size).toBe(4);
  });

  type Conditions = { ready: boolean; serving: boolean; terminating: boolean };
  test.each<[string, Pod, Partial<SlicePlace>, Partial<Service['spec']>, Conditions]>([
    ['a pod that is ready', pod(), {}, {}, { ready: true, serving: true, terminating: false }],
    ['one that is not', pod({ status: ready('False') }), {}, {}, { ready: false, serving: false, terminating: false }],
    [
      'a provider that does not answer',
      pod(),
      { linked: false },
      {},
      { ready: false, serving: false, terminating: false },
    ],
    [
      'a pod that is ending, and still serves',
      pod({ metadata: { ...pod().metadata, deletionTimestamp: '2026-01-01T00:01:00Z' } }),
      {},
      {},
      { ready: false, serving: true, terminating: true },
    ],
    [
      'a Service that publishes what is not ready',
      pod({ status: ready('False') }),
      {},
      { publishNotReadyAddresses: true },
      { ready: true, serving: false, terminating: false },
    ],
  ])('%s', (_name, its, at, spec, conditions) => {
    expect(sliceFor(its, service(spec), place(at)).endpoints?.[0]?.conditions).toEqual(conditions);
  });

  test('shows only ports that somebody listens on', () => {
    const two = service({
      ports: [
        { name: 'a', port: 1 },
        { name: 'b', port: 2 },
      ],
    });
    const at = place({ portOf: (target) => (target === 2 ? 20_002 : undefined) });
    expect(sliceFor(pod(), two, at).ports).toEqual([{ name: 'b', protocol: 'TCP', port: 20_002 }]);
    expect(sliceOf(pod(), exposure(pod(), two).served[0]!, place({ portOf: () => undefined }))).toBeUndefined();
  });

  test('says after a restart which port stood for which', () => {
    const two = service({
      ports: [
        { name: 'a', port: 80, targetPort: 8080 },
        { name: 'b', port: 15_000 },
      ],
    });
    expect([...recordedPorts(sliceFor(pod(), two))]).toEqual([
      [8080, 20_080],
      [15_000, 20_000],
    ]);
    const spoilt = sliceFor(pod());
    spoilt.metadata.annotations = { 'gpulease.dev/pod-ports': 'x=1,70000=2,20000=8080,,3=' };
    expect([...recordedPorts(spoilt)]).toEqual([[8080, 20_000]]);
  });

  test('is told from one that is as it should be', () => {
    const stored = structuredClone(sliceFor(pod()));
    // What the API server adds to it.
    Object.assign(stored.metadata, { uid: 'x', resourceVersion: '7', generation: 1, creationTimestamp: 'then' });
    stored.metadata.labels = { ...stored.metadata.labels, 'somebody.else/label': 'stays' };
    stored.ports = stored.ports!.map((port) => ({ ...port, name: '' }));
    expect(contentOf(stored)).toEqual(contentOf(sliceFor(pod())));
    stored.endpoints![0]!.conditions!.ready = false;
    expect(contentOf(stored)).not.toEqual(contentOf(sliceFor(pod())));
    expect(podOfSlice(stored)).toEqual({ namespace: 'team-a', name: 'web-0', uid: '3f1c' });
    expect(podOfSlice({ ...stored, endpoints: [] })).toBeUndefined();
  });
});
