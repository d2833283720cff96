import { describe, expect, test } from 'vitest';
import { neededAccess, routeOf, subresourceQuery } from '../../../operator/kubelet/api/routes.ts';

const stream = (path: string) => {
  const route = routeOf(path);
  if (route?.kind !== 'stream') throw new Error(`${path} is no stream`);
  return route;
};

describe('paths of a kubelet', () => {
  test.each<[string, unknown]>([
    ['/containerLogs/ns/pod/c', { kind: 'stream', stream: 'log', namespace: 'ns', pod: 'pod', container: 'c' }],
    ['/exec/ns/pod/c', { kind: 'stream', stream: 'exec', namespace: 'ns', pod: 'pod', container: 'c' }],
    ['/exec/ns/pod/u-1/c', { kind: 'stream', stream: 'exec', namespace: 'ns', pod: 'pod', uid: 'u-1', container: 'c' }],
    ['/attach/ns/pod/c', { kind: 'stream', stream: 'attach', namespace: 'ns', pod: 'pod', container: 'c' }],
    ['/portForward/ns/pod', { kind: 'stream', stream: 'portforward', namespace: 'ns', pod: 'pod' }],
    ['/portForward/ns/pod/u-1', { kind: 'stream', stream: 'portforward', namespace: 'ns', pod: 'pod', uid: 'u-1' }],
    ['/pods', { kind: 'pods' }],
    ['/runningpods/', { kind: 'runningPods' }],
    ['/healthz', { kind: 'healthz' }],
    ['/healthz/syncloop', { kind: 'healthz' }],
    ['/healthz/secrets', undefined],
    ['/configz', { kind: 'configz' }],
    ['/stats/summary', { kind: 'figures', page: 'stats' }],
    ['/stats', undefined],
    ['/stats/container', undefined],
    ['/metrics', { kind: 'metrics' }],
    ['/metrics/resource', { kind: 'figures', page: 'metrics/resource' }],
    ['/metrics/cadvisor', { kind: 'figures', page: 'metrics/cadvisor' }],
    ['/metrics/probes', { kind: 'figures', page: 'metrics/probes' }],
    ['/metrics/resource/x', undefined],
    ['/metrics/slis', undefined],
    ['/logs/', { kind: 'off', status: 405, why: expect.stringContaining('disabled') }],
    ['/debug/pprof/heap', { kind: 'off', status: 405, why: expect.stringContaining('disabled') }],
    ['/checkpoint/ns/pod/c', { kind: 'off', status: 501, why: expect.stringContaining('not offered') }],
    ['/run/ns/pod/c', { kind: 'off', status: 501, why: expect.stringContaining('use exec') }],
    ['/', undefined],
    ['/exec/ns/pod', undefined],
    ['/exec/ns//c', undefined],
    ['/exec/a/b/c/d/e', undefined],
    ['/containerLogs/ns/pod/u/c', undefined],
    ['/exec/ns/pod/%zz', undefined],
    ['/constructor/ns/pod/c', undefined],
    ['/api/v1/secrets', undefined],
  ])('%s', (path, expected) => {
    expect(routeOf(path)).toEqual(expected);
  });
});

describe('queries', () => {
  test.each([
    [
      '/containerLogs/n/p/c',
      'follow=true&tailLines=5&previous=true&timestamps=true&sinceSeconds=1&limitBytes=9&evil=1',
      'container=c&follow=true&previous=true&sinceSeconds=1&timestamps=true&tailLines=5&limitBytes=9',
    ],
    ['/containerLogs/n/p/c', 'stream=All', 'container=c'],
    [
      '/containerLogs/n/p/c',
      'stream=Stderr&sinceTime=2026-01-01T00%3A00%3A00Z',
      'container=c&sinceTime=2026-01-01T00%3A00%3A00Z&stream=Stderr',
    ],
    ['/containerLogs/n/p/c', 'tail=7', 'container=c&tailLines=7'],
    ['/containerLogs/n/p/c', 'tail=all', 'container=c'],
    ['/containerLogs/n/p/c', 'tail=7&tailLines=8', 'container=c&tailLines=8'],
    [
      '/exec/n/p/c',
      'input=1&output=1&error=0&tty=1&command=sh&command=-c&command=a%26b%20c',
      'container=c&stdin=true&stdout=true&tty=true&command=sh&command=-c&command=a%26b+c',
    ],
    ['/attach/n/p/c', 'output=true&error=1&command=x', 'container=c&stdout=true&stderr=true'],
    ['/portForward/n/p', 'port=80&port=443', 'ports=80&ports=443'],
    ['/portForward/n/p', '', ''],
  ])('of %s?%s', (path, given, expected) => {
    expect(subresourceQuery(stream(path), new URLSearchParams(given)).toString()).toBe(expected);
  });
});

describe('what a caller must be allowed', () => {
  test.each([
    ['/containerLogs/n/p/c', 'GET', 'get', ['proxy']],
    ['/exec/n/p/c', 'POST', 'create', ['proxy']],
    // A WebSocket is opened by GET: who may only read gets no shell by it.
    ['/exec/n/p/c', 'GET', 'create', ['proxy']],
    ['/portForward/n/p', 'GET', 'create', ['proxy']],
    ['/attach/n/p/c', 'GET', 'create', ['proxy']],
    ['/run/n/p/c', 'GET', 'create', ['proxy']],
    ['/pods', 'GET', 'get', ['pods', 'proxy']],
    ['/pods/', 'GET', 'get', ['pods', 'proxy']],
    ['/runningpods/', 'GET', 'get', ['pods', 'proxy']],
    ['/healthz', 'GET', 'get', ['healthz', 'proxy']],
    ['/healthz/ping', 'GET', 'get', ['healthz', 'proxy']],
    ['/configz', 'GET', 'get', ['configz', 'proxy']],
    ['/stats/summary', 'GET', 'get', ['stats']],
    ['/stats/summary', 'POST', 'create', ['stats']],
    ['/metrics', 'GET', 'get', ['metrics']],
    ['/metrics/resource', 'GET', 'get', ['metrics']],
    ['/metricsandmore', 'GET', 'get', ['proxy']],
    ['/logs/x', 'GET', 'get', ['log']],
    ['/checkpoint/n/p/c', 'POST', 'create', ['checkpoint']],
    ['/statusz', 'GET', 'get', ['statusz']],
    ['/flagz', 'GET', 'get', ['configz']],
    ['/debug/pprof', 'GET', 'get', ['proxy']],
    ['/nothing', 'DELETE', 'delete', ['proxy']],
    ['/nothing', 'PUT', 'update', ['proxy']],
    ['/nothing', 'PATCH', 'patch', ['proxy']],
    // No verb of the API: only who may do everything may do this.
    ['/pods', 'HEAD', '', ['pods', 'proxy']],
  ])('for %s by %s', (path, method, verb, subresources) => {
    expect(neededAccess(path, method)).toEqual({ verb, subresources });
  });
});
