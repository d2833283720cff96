import { describe, expect, test } from 'vitest';
import type { NamedService } from '../../../../operator/api/lease.ts';
import {
  dialTargets,
  hostAliasesFor,
  namedServices,
  parseAuthority,
  servicesRequest,
  withHostAliases,
} from '../../../../operator/core/node/named-services.ts';
import type { EndpointSlice, Service } from '../../../../operator/core/node/service.ts';
import { pod } from './builders.ts';

const service = (name: string, spec: Partial<Service['spec']> = {}, annotations?: Record<string, string>): Service => ({
  metadata: { name, namespace: 'ml', ...(annotations && { annotations }) },
  spec: {
    clusterIP: '10.96.0.9',
    ports: [
      { name: 'http', port: 80 },
      { name: 'grpc', port: 9000 },
    ],
    ...spec,
  },
});
const shared = (namespaces: string) => ({ 'gpulease.dev/lease-namespaces': namespaces });

const resolve = (wanted: NamedService[], services: Record<string, Service>) =>
  namedServices(wanted, 'ml', ({ namespace, name }) => services[`${namespace}/${name}`]);

describe('a Service that a lease names', () => {
  test.each<[string, NamedService, Record<string, Service>, number[] | undefined, string[]]>([
    ['is reached on all its ports', { name: 'db' }, { 'ml/db': service('db') }, [80, 9000], []],
    ['or on those that are listed', { name: 'db', ports: [9000] }, { 'ml/db': service('db') }, [9000], []],
    [
      'of which the missing ones are told',
      { name: 'db', ports: [9000, 5432] },
      { 'ml/db': service('db') },
      [9000],
      ['ServicePortNotFound'],
    ],
    [
      'by TCP only',
      { name: 'db' },
      { 'ml/db': service('db', { ports: [{ port: 80 }, { port: 53, protocol: 'UDP' }] }) },
      [80],
      ['ServiceNotSupported'],
    ],
    [
      'may be headless: endpoints are dialled',
      { name: 'db' },
      { 'ml/db': service('db', { clusterIP: 'None' }) },
      [80, 9000],
      [],
    ],
    ['has its name before it is there', { name: 'db' }, {}, [], ['ServiceNotFound']],
    [
      'is no mere name for a host outside',
      { name: 'db' },
      { 'ml/db': service('db', { type: 'ExternalName' }) },
      undefined,
      ['ServiceNotSupported'],
    ],
    [
      'of another namespace must be shared',
      { name: 'db', namespace: 'prod' },
      { 'prod/db': service('db') },
      undefined,
      ['ServiceNotShared'],
    ],
    [
      'with this one',
      { name: 'db', namespace: 'prod' },
      { 'prod/db': service('db', {}, shared('dev,staging')) },
      undefined,
      ['ServiceNotShared'],
    ],
    ['by name', { name: 'db', namespace: 'prod' }, { 'prod/db': service('db', {}, shared('dev, ml')) }, [80, 9000], []],
    ['or with all', { name: 'db', namespace: 'prod' }, { 'prod/db': service('db', {}, shared('*')) }, [80, 9000], []],
    ['and nobody has agreed before it is there', { name: 'db', namespace: 'prod' }, {}, undefined, ['ServiceNotFound']],
  ])('%s', (_name, wanted, services, ports, reasons) => {
    const { named, notes } = resolve([wanted], services);
    expect(named[0]?.ports.map(({ port }) => port)).toEqual(ports);
    expect(notes.map(({ reason }) => reason)).toEqual(reasons);
  });

  test('is one, also when it is named twice', () => {
    const { named } = resolve([{ name: 'db' }, { name: 'db', namespace: 'ml' }], { 'ml/db': service('db') });
    expect(named).toHaveLength(1);
  });

  test('of many ports gives the first sixteen, and says so', () => {
    const many = service('db', { ports: Array.from({ length: 20 }, (_, i) => ({ name: `p${i}`, port: 1000 + i })) });
    const { named, notes } = resolve([{ name: 'db' }], { 'ml/db': many });
    expect(named[0]?.ports).toHaveLength(16);
    expect(notes[0]?.message).toContain('20 TCP ports');
  });

  test('is told to the gateway by name and port alone', () => {
    const { named } = resolve([{ name: 'db', ports: [80] }], { 'ml/db': service('db') });
    expect(servicesRequest(named)).toEqual({
      services: [{ namespace: 'ml', name: 'db', ports: [{ name: 'http', port: 80 }] }],
    });
  });
});

test.each([
  ['db.ml:80', { name: 'db', namespace: 'ml', port: 80 }],
  ['db:80', undefined],
  ['db.ml', undefined],
  ['db.ml.svc:80', undefined],
  ['db.ml:0', undefined],
  ['db.ml:65536', undefined],
  ['db.ml:080', undefined],
  ['Db.ml:80', undefined],
  ['-db.ml:80', undefined],
  ['db.ml:80/x', undefined],
  [`${'a'.repeat(64)}.ml:80`, undefined],
  [undefined, undefined],
  [['db.ml:80'], undefined],
])('the authority %s asks for %o', (authority, wanted) => {
  expect(parseAuthority(authority)).toEqual(wanted);
});

describe('a connection to a Service goes', () => {
  const slice = (
    endpoints: EndpointSlice['endpoints'],
    ports: EndpointSlice['ports'] = [{ name: 'http', port: 8080 }],
  ) => ({
    metadata: { name: 's' },
    addressType: 'IPv4',
    endpoints,
    ports,
  });
  const http = { name: 'http', port: 80 };
  const ending = { ready: false, serving: true, terminating: true };

  test.each<[string, EndpointSlice[], string[]]>([
    ['to what is ready', [slice([{ addresses: ['10.1.0.1'], conditions: { ready: true } }])], ['10.1.0.1:8080']],
    ['to what does not say', [slice([{ addresses: ['10.1.0.1'] }])], ['10.1.0.1:8080']],
    ['not to what is not', [slice([{ addresses: ['10.1.0.1'], conditions: { ready: false } }])], []],
    [
      'to what is ending, only while there is nothing else',
      [slice([{ addresses: ['10.1.0.1'], conditions: ending }])],
      ['10.1.0.1:8080'],
    ],
    [
      'and otherwise not',
      [slice([{ addresses: ['10.1.0.1'], conditions: ending }, { addresses: ['10.1.0.2'] }])],
      ['10.1.0.2:8080'],
    ],
    ['to the port of that name', [slice([{ addresses: ['10.1.0.1'] }], [{ name: 'grpc', port: 9 }])], []],
    [
      'not to another protocol',
      [slice([{ addresses: ['10.1.0.1'] }], [{ name: 'http', port: 9, protocol: 'UDP' }])],
      [],
    ],
    [
      'to endpoints of all slices',
      [slice([{ addresses: ['10.1.0.1'] }]), slice([{ addresses: ['10.1.0.2'] }])],
      ['10.1.0.1:8080', '10.1.0.2:8080'],
    ],
    ['nowhere without endpoints', [slice(null), slice([])], []],
    ['not to a name', [{ ...slice([{ addresses: ['db.example.com'] }]), addressType: 'FQDN' }], []],
    [
      'never back into this process',
      [
        slice(
          ['127.0.0.1', '0.0.0.0', '169.254.169.254', '224.0.0.1', '::1', 'fe80::1'].map((one) => ({
            addresses: [one],
          })),
        ),
      ],
      [],
    ],
  ])('%s', (_name, slices, wanted) => {
    expect(dialTargets(slices, http).map(({ address, port }) => `${address}:${port}`)).toEqual(wanted);
  });
});

describe('what a pod’s hosts file says', () => {
  const reached = [
    { namespace: 'ml', name: 'db', address: '10.96.1.1' },
    { namespace: 'prod', name: 'api', address: '10.96.1.2' },
  ];

  test('is every name that DNS would know; a bare one in its own namespace only', () => {
    expect(hostAliasesFor('ml', reached, 'cluster.local')).toEqual([
      { ip: '10.96.1.1', hostnames: ['db', 'db.ml', 'db.ml.svc', 'db.ml.svc.cluster.local'] },
      { ip: '10.96.1.2', hostnames: ['api.prod', 'api.prod.svc', 'api.prod.svc.cluster.local'] },
    ]);
  });

  test('begins with what its author wrote, who is right where both speak of one name', () => {
    const own = [{ ip: '192.0.2.1', hostnames: ['db', 'legacy'] }];
    const { spec } = withHostAliases(pod({ hostAliases: own }), hostAliasesFor('ml', reached.slice(0, 1), 'k8s.local'));
    expect(spec.hostAliases).toEqual([
      ...own,
      { ip: '10.96.1.1', hostnames: ['db.ml', 'db.ml.svc', 'db.ml.svc.k8s.local'] },
    ]);
  });

  test('is left as it is where nothing is reached', () => {
    const its = pod();
    expect(withHostAliases(its, [])).toBe(its);
  });
});
