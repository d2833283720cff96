/** Reading the pages of a kubelet: a real HTTPS server stands for it. */
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createKubeletPages, type KubeletPages } from '../../../../operator/adapters/gateway/kubelet-pages.ts';
import type { NodePage } from '../../../../operator/core/allocation/node-pages.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import { type ManualClock, manualClock } from '../../../support/clock.ts';
import { type Authority, authority, type Pair } from '../provider/tls.ts';

const tenant = `gl-${'a'.repeat(20)}`;
let ca: Authority;
let serving: Pair;
let client: Pair;
beforeAll(async () => {
  ca = await authority('cluster');
  serving = await ca.issue([{ CN: ['system:node:rack-7'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] });
  client = await ca.issue([{ CN: ['gateway'] }], { client: true });
});

type Answer = { status?: number; body?: string; never?: boolean; breaksOff?: boolean };
let answers: Record<string, Answer>;
let asked: { path: string; token?: string; cert?: string; accept?: string }[];
let kubelet: https.Server;
let port: number;
let clock: ManualClock;
let warned: { why?: string }[];
let node: object | undefined;
let pages: KubeletPages;
let forgotten: number;

beforeEach(async () => {
  answers = {};
  asked = [];
  warned = [];
  forgotten = 0;
  clock = manualClock();
  kubelet = https.createServer(
    { ...serving, ca: ca.pem, requestCert: true, rejectUnauthorized: false },
    (request, response) => {
      asked.push({
        path: request.url ?? '',
        token: request.headers.authorization,
        cert: (request.socket as TLSSocket).getPeerCertificate()?.subject?.CN as string | undefined,
        accept: request.headers.accept,
      });
      const { status = 200, body = '', never, breaksOff } = answers[request.url ?? ''] ?? { status: 404 };
      if (never) return;
      response.writeHead(status, breaksOff ? { 'content-length': body.length + 100 } : {});
      if (breaksOff) response.write(body, () => response.destroy());
      else response.end(body);
    },
  );
  await new Promise<void>((resolve) => kubelet.listen(0, '127.0.0.1', resolve));
  port = (kubelet.address() as AddressInfo).port;
  node = nodeAt('127.0.0.1', port);
  pages = reader();
});
afterEach(async () => {
  pages.close();
  kubelet.closeAllConnections();
  await new Promise((resolve) => kubelet.close(resolve));
});

const nodeAt = (address: string, at: number | undefined, type = 'InternalIP') => ({
  metadata: { name: 'rack-7' },
  status: {
    addresses: [
      { type: 'Hostname', address: 'rack-7.internal' },
      { type, address },
    ],
    ...(at !== undefined && { daemonEndpoints: { kubeletEndpoint: { Port: at } } }),
  },
});

function reader(more: Partial<Parameters<typeof createKubeletPages>[0]> = {}): KubeletPages {
  return createKubeletPages({
    cluster: { get: async () => node as never },
    credentials: {
      identity: async () => ({ headers: { Authorization: 'Bearer ours' }, clusterCa: ca.pem, ...client }),
      forget: () => {
        forgotten += 1;
      },
    },
    clock,
    log: { ...silentLog, warn: (fields: object) => void warned.push(fields as { why?: string }) },
    timeoutSeconds: 1,
    ...more,
  });
}

const read = (page: NodePage = 'metrics/cadvisor', namespace = tenant, signal?: AbortSignal) =>
  pages.read('rack-7', page, namespace, signal);
const refusal = async (work: Promise<unknown>) => {
  try {
    await work;
  } catch (error) {
    const { status, message } = error as { status: number; message: string };
    return { status, message };
  }
  throw new Error('not refused');
};

describe('a page', () => {
  test.each<[NodePage, string, string, string]>([
    [
      'metrics/cadvisor',
      '/metrics/cadvisor',
      `container_x{namespace="${tenant}"} 1\ncontainer_x 2\n`,
      `container_x{namespace="${tenant}"} 1\n`,
    ],
    ['metrics/probes', '/metrics/probes', `prober_x{namespace="${tenant}"} 1`, `prober_x{namespace="${tenant}"} 1\n`],
    ['stats', '/stats/summary', '{"node":{},"pods":null}', '{"node":{"cpu":{},"memory":{}},"pods":[]}'],
  ])('%s is read at %s of the kubelet itself', async (page, path, body, expected) => {
    answers[path] = { body };
    expect(await read(page)).toBe(expected);
    expect(asked).toEqual([
      {
        path,
        token: 'Bearer ours',
        cert: 'gateway',
        accept: page === 'stats' ? 'application/json' : 'text/plain;version=0.0.4',
      },
    ]);
  });

  test('is read once for all that ask, and for some seconds', async () => {
    answers['/metrics/cadvisor'] = { body: `container_x{namespace="${tenant}"} 1\n` };
    const other = `gl-${'b'.repeat(20)}`;
    const told = await Promise.all([read(), read(), read('metrics/cadvisor', other)]);
    expect(told.map((one) => one.length > 0)).toEqual([true, true, false]);
    await clock.advance(4000);
    await read();
    expect(asked).toHaveLength(1);
    await clock.advance(1000);
    await read();
    expect(asked).toHaveLength(2);
  });

  test('goes on for the others when one leaves', async () => {
    answers['/metrics/cadvisor'] = { body: `container_x{namespace="${tenant}"} 1\n` };
    const leaving = new AbortController();
    const left = read('metrics/cadvisor', tenant, leaving.signal);
    const stayed = read();
    leaving.abort(new Error('went away'));
    await expect(left).rejects.toThrow('went away');
    expect(await stayed).toContain('container_x');
    expect(asked).toHaveLength(1);
  });

  test('may come in pieces that end within a character', async () => {
    const body = `container_x{image="${'ü'.repeat(100_000)}",namespace="${tenant}"} 1\ncontainer_y{image="ü",namespace="${tenant}"} 1\n`;
    answers['/metrics/cadvisor'] = { body };
    expect(await read()).toBe(`container_y{image="ü",namespace="${tenant}"} 1\n`);
  });
});

describe('a kubelet', () => {
  const gone = { node: undefined };
  test.each<[string, { node?: object | undefined } & Answer, number, RegExp]>([
    ['that is not there', gone, 501, /names no address/],
    ['without a port', { node: nodeAt('127.0.0.1', undefined) }, 501, /names no address/],
    ['that has no such page', { status: 404 }, 501, /no real kubelet/],
    ['that nobody answers for', { node: nodeAt('127.0.0.1', 1) }, 503, /ECONNREFUSED/],
    ['that does not know us', { status: 401 }, 503, /right to get nodes\/metrics/],
    ['that does not let us', { status: 403 }, 503, /right to get nodes\/metrics/],
    ['that fails', { status: 500, body: 'at secret.go:7' }, 503, /answers 500/],
    ['that says nothing', { never: true }, 503, /no answer within 1 s/],
    ['that breaks off', { body: 'x 1', breaksOff: true }, 503, /./],
  ])('%s is told as such, without its place', async (_, given, status, why) => {
    if ('node' in given) node = given.node;
    answers['/metrics/cadvisor'] = given;
    const told = await refusal(read());
    expect(told.status).toBe(status);
    expect(forgotten).toBe(given.status === 401 ? 1 : 0);
    expect(told.message).not.toMatch(/127\.0\.0\.1|rack-7|secret|ECONN/);
    expect(warned.map((one) => one.why)).toEqual([expect.stringMatching(why)]);
  });

  test('that is down is not asked by each tenant, and not logged at each time', async () => {
    answers['/metrics/cadvisor'] = { status: 500 };
    await Promise.all([refusal(read()), refusal(read())]);
    await refusal(read());
    expect(asked).toHaveLength(1);
    await clock.advance(5000);
    await refusal(read());
    expect(asked).toHaveLength(2);
    expect(warned).toHaveLength(1);
  });

  test.each(['[1', '[]', '"no summary"'])('whose summary is %s gives none', async (body) => {
    answers['/stats/summary'] = { body };
    expect((await refusal(read('stats'))).status).toBe(503);
  });

  test('whose page has no end is left', async () => {
    const line = `container_x{namespace="kube-system",pod="${'p'.repeat(10_000)}"} 1\n`;
    answers['/metrics/cadvisor'] = { body: line.repeat(3500) };
    pages = reader({ timeoutSeconds: 60 });
    expect((await refusal(read())).status).toBe(503);
    expect(warned[0]?.why).toMatch(/longer than/);
  });
});

describe('the certificate of a kubelet', () => {
  beforeEach(() => {
    answers['/metrics/cadvisor'] = { body: `container_x{namespace="${tenant}"} 1\n` };
  });

  test('of another CA is not trusted, learns no token, and the log says what to do', async () => {
    const other = await authority('other');
    pages = reader({ ca: other.pem });
    expect((await refusal(read())).status).toBe(503);
    expect(asked).toEqual([]);
    expect(warned[0]?.why).toMatch(/not trusted.*--kubelet-certificate-authority/);
  });

  test('of another address is not trusted', async () => {
    node = nodeAt('localhost', port, 'InternalDNS');
    expect((await refusal(read())).status).toBe(503);
    expect(asked).toEqual([]);
    expect(warned[0]?.why).toMatch(/not trusted/);
  });

  test('does not matter to who says that it does not', async () => {
    const other = await authority('other');
    pages = reader({ ca: other.pem, insecure: true });
    expect(await read()).toContain('container_x');
  });
});
