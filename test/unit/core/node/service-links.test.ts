/** Variables of Services, as a kubelet makes them: pkg/kubelet/envvars and getServiceEnvVarMap of Kubernetes are the measure. */
import { describe, expect, test } from 'vitest';
import {
  type LinkedService,
  type ServiceLinks,
  serviceLinksName,
  serviceLinksOf,
  serviceVariables,
} from '../../../../operator/core/node/service-links.ts';

const service = (name: string, namespace: string, spec: LinkedService['spec']): LinkedService => ({
  metadata: { name, namespace },
  spec,
});
const kubernetes = service('kubernetes', 'default', {
  clusterIP: '10.96.0.1',
  ports: [{ name: 'https', port: 443, protocol: 'TCP' }],
});
const team: ServiceLinks = { kind: 'ServiceLinks', namespace: 'team-a', all: true };
const variables = (services: LinkedService[], links = team) => serviceVariables(links, services).variables;

describe('a container is told', () => {
  test('of each port of a Service, in Kubernetes’ and in Docker’s words', () => {
    const web = service('my-web', 'team-a', {
      clusterIP: '1.2.3.4',
      ports: [
        { name: 'http', port: 80, protocol: 'TCP' },
        { name: 'dns-udp', port: 53, protocol: 'UDP' },
      ],
    });
    expect(variables([web])).toEqual({
      MY_WEB_SERVICE_HOST: '1.2.3.4',
      MY_WEB_SERVICE_PORT: '80',
      MY_WEB_SERVICE_PORT_HTTP: '80',
      MY_WEB_SERVICE_PORT_DNS_UDP: '53',
      MY_WEB_PORT: 'tcp://1.2.3.4:80',
      MY_WEB_PORT_80_TCP: 'tcp://1.2.3.4:80',
      MY_WEB_PORT_80_TCP_PROTO: 'tcp',
      MY_WEB_PORT_80_TCP_PORT: '80',
      MY_WEB_PORT_80_TCP_ADDR: '1.2.3.4',
      MY_WEB_PORT_53_UDP: 'udp://1.2.3.4:53',
      MY_WEB_PORT_53_UDP_PROTO: 'udp',
      MY_WEB_PORT_53_UDP_PORT: '53',
      MY_WEB_PORT_53_UDP_ADDR: '1.2.3.4',
    });
  });

  test('of an IPv6 address in brackets where a port follows', () => {
    const six = service('v6', 'team-a', { clusterIP: 'fd00::1', ports: [{ port: 8080 }] });
    expect(variables([six])).toMatchObject({
      V6_SERVICE_HOST: 'fd00::1',
      V6_PORT: 'tcp://[fd00::1]:8080',
      V6_PORT_8080_TCP_ADDR: 'fd00::1',
    });
  });

  test.each<[string, LinkedService]>([
    ['headless', service('a', 'team-a', { clusterIP: 'None', ports: [{ port: 1 }] })],
    ['without an address yet', service('a', 'team-a', { clusterIP: '', ports: [{ port: 1 }] })],
    ['an external name', service('a', 'team-a', {})],
    ['of another namespace', service('a', 'team-b', { clusterIP: '1.1.1.1', ports: [{ port: 1 }] })],
  ])('of no Service that is %s', (_, other) => {
    expect(variables([other])).toEqual({});
  });

  test('of the API server always, and of nothing else where it wants no Services', () => {
    const web = service('web', 'team-a', { clusterIP: '1.2.3.4', ports: [{ port: 80 }] });
    expect(Object.keys(variables([kubernetes, web]))).toContain('WEB_SERVICE_HOST');
    const none = variables([kubernetes, web], serviceLinksOf('team-a', false));
    expect(none).toMatchObject({ KUBERNETES_SERVICE_HOST: '10.96.0.1', KUBERNETES_SERVICE_PORT_HTTPS: '443' });
    expect(Object.keys(none).every((name) => name.startsWith('KUBERNETES_'))).toBe(true);
  });

  test('of its own namespace’s Service before the API server’s, whichever comes first', () => {
    const own = service('kubernetes', 'team-a', { clusterIP: '9.9.9.9', ports: [{ port: 1 }] });
    for (const services of [
      [kubernetes, own],
      [own, kubernetes],
    ])
      expect(variables(services).KUBERNETES_SERVICE_HOST).toBe('9.9.9.9');
  });

  test('of as many as an object holds, and of how many not', () => {
    const many = Array.from({ length: 4000 }, (_, i) =>
      service(`s-${String(i).padStart(5, '0')}`, 'team-a', {
        clusterIP: '10.0.0.1',
        ports: [{ name: 'http', port: 80 }],
      }),
    );
    const { variables: told, left } = serviceVariables(team, many);
    expect(left).toBeGreaterThan(0);
    expect(JSON.stringify(told).length).toBeLessThan(1_000_000);
    expect(told.S_00000_SERVICE_HOST).toBe('10.0.0.1');
  });
});

test('the object’s name tells namespaces apart, and cannot be that of a ConfigMap of somebody’s', () => {
  const names = [team, { ...team, namespace: 'team-b' }, serviceLinksOf('team-a', false)].map(serviceLinksName);
  expect(new Set(names).size).toBe(3);
  expect(serviceLinksName(serviceLinksOf('team-b', false))).toBe(names[2]);
  for (const name of names) expect(name).not.toMatch(/-[0-9a-f]{32}$/);
});
