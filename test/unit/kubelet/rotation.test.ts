/** The serving certificate of a virtual node, as time goes by. The port and its TLS are real, the clock is not. */
import { X509Certificate } from 'node:crypto';
import { createServer, connect as netConnect, type Server, type Socket } from 'node:net';
import tls from 'node:tls';
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Service } from '../../../operator/core/node/service.ts';
import { createInformer } from '../../../operator/engine/informer.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import type { Callers } from '../../../operator/kubelet/api/callers.ts';
import { createFollowedObjects } from '../../../operator/kubelet/followed.ts';
import { type Host, openHost } from '../../../operator/kubelet/host.ts';
import { createEndpoints } from '../../../operator/kubelet/services/endpoints.ts';
import type { ServingCertificate } from '../../../operator/kubelet/types.ts';
import { type ManualClock, manualClock } from '../../support/clock.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';
import { type Authority, authority } from '../adapters/provider/tls.ts';
import { fakeLease, served } from './fake-lease.ts';

const minute = 60_000;
let ca: Authority;
beforeAll(async () => {
  ca = await authority('cluster');
});

let clock: ManualClock;
let host: Host;
/** What the cluster's signer does: signs for so many minutes, or is silent. */
let signer: { minutes: number } | undefined;
let asked: number[];
let far: Promise<Socket>;
let listener: Server;

async function made(name: string, minutes: number): Promise<ServingCertificate> {
  const pair = await ca.issue([{ CN: [name] }], { san: [{ type: 'ip', value: '127.0.0.1' }] });
  const at = (share: number) => new Date(clock.now().getTime() + minutes * minute * share);
  return { certificatePem: pair.cert, privateKeyPem: pair.key, renewAt: at(0.7), expiresAt: at(1) };
}

beforeEach(async () => {
  clock = manualClock();
  signer = { minutes: 100 };
  asked = [];
  const { promise, resolve } = Promise.withResolvers<Socket>();
  far = promise;
  listener = createServer({ allowHalfOpen: true }, resolve);
  await new Promise<void>((listening) => listener.listen(0, '127.0.0.1', listening));
});
afterEach(async () => {
  await host.stop();
  (await Promise.race([far, undefined]))?.destroy();
  listener.close();
});

async function open(): Promise<void> {
  let signed = 0;
  let own = 0;
  const empty = fakeCluster();
  const lease = fakeLease(empty);
  const callers: Callers = { identify: async () => ({ user: 'api-server', groups: [] }), allowed: async () => true };
  host = openHost({
    name: 'n',
    spec: {
      lease: { name: 'train', namespace: 'team', uid: 'u' },
      leaseId: '0x1',
      providerName: 'acme',
      offerName: 'o',
      capacityType: 'OnDemand',
      allowedNamespaces: ['team'],
      served: served(),
      healthy: () => ({ ready: true }),
    },
    lease: {
      ...lease,
      upgrade: async () => {
        const { port } = listener.address() as { port: number };
        const response = { statusCode: 101, headers: { upgrade: 'SPDY/3.1', connection: 'Upgrade' } };
        const socket = netConnect({ port, host: '127.0.0.1', allowHalfOpen: true });
        return { response: response as never, socket, head: Buffer.alloc(0) };
      },
    },
    consumer: empty,
    address: '127.0.0.1',
    listenHost: '127.0.0.1',
    ports: undefined,
    certificates: {
      selfSigned: () => made(`own ${++own}`, 1_000_000),
      async signed() {
        asked.push(clock.now().getTime());
        return signer && made(`signed ${++signed}`, signer.minutes);
      },
    },
    callers,
    clientCa: () => ca.pem,
    clientCaReady: Promise.resolve(),
    lastPort: async () => undefined,
    podOf: async (namespace, name) => ({
      metadata: { namespace, name, uid: 'u' },
      spec: { containers: [{ name: 'c' }] },
    }),
    podsHere: () => [],
    podOfRemote: () => undefined,
    kubeletVersion: 'v1.36.3',
    heartbeatLastsSeconds: 40,
    objectPollSeconds: 1_000_000,
    clock,
    log: silentLog,
    onProgress: () => undefined,
    onRemotePod: () => undefined,
    onRemoteEvent: () => undefined,
    onMissing: () => undefined,
    wantedObjects: () => new Set(),
    onTokenFailure: () => undefined,
    serviceVariables: () => ({}),
    services: createInformer<Service & KubeObject>({ cluster: empty, resource: resources.services, log: silentLog }),
    endpoints: createEndpoints({ cluster: empty, log: silentLog, clock }),
    clusterDomain: 'cluster.local',
    events: { event: () => undefined },
    followed: createFollowedObjects({ cluster: empty, clock, log: silentLog }),
  });
  await expect.poll(() => asked.length).toBe(1);
}

/** Whose certificate a new caller is shown. */
function shown(): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ host: '127.0.0.1', port: host.port!, ca: ca.pem }, () => {
      resolve(new X509Certificate(socket.getPeerX509Certificate()!.raw).subject.replace('CN=', ''));
      socket.destroy();
    });
    socket.on('error', reject);
  });
}

test('a certificate is renewed before it ends, and a stream that is open goes on', async () => {
  await open();
  await expect.poll(shown).toBe('signed 1');
  const near = tls.connect({ host: '127.0.0.1', port: host.port!, ca: ca.pem });
  near.write('POST /exec/team/p/c?command=sh HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n');
  let heard = '';
  near.on('data', (chunk: Buffer) => {
    heard += chunk.toString();
  });
  const other = await far;
  other.on('data', (chunk: Buffer) => other.write(`echo ${chunk.toString()}`));
  await expect.poll(() => heard).toContain('101 Switching');
  try {
    for (const turn of [2, 3, 4]) {
      await clock.advance(71 * minute);
      await expect.poll(shown).toBe(`signed ${turn}`);
      near.write(`turn ${turn};`);
      await expect.poll(() => heard).toContain(`echo turn ${turn};`);
    }
    expect(asked).toHaveLength(4);
  } finally {
    near.destroy();
  }
});

test('while nobody signs the next one, the last one is shown to its end', async () => {
  await open();
  await expect.poll(shown).toBe('signed 1');
  signer = undefined;
  await clock.advance(99 * minute);
  expect(asked.length).toBeGreaterThan(3);
  expect(await shown()).toBe('signed 1');
  await clock.advance(2 * minute);
  await expect.poll(shown).toBe('own 2');
  signer = { minutes: 100 };
  await clock.advance(10 * minute);
  await expect.poll(shown).toBe('signed 2');
});

test('a signer that is late at the start is asked again within seconds, then ever less often', async () => {
  signer = undefined;
  await open();
  expect(await shown()).toBe('own 1');
  await clock.advance(60 * minute);
  const pauses = asked.slice(1).map((at, i) => (at - asked[i]!) / 1000);
  expect(pauses.slice(0, 8)).toEqual([10, 20, 40, 80, 160, 320, 600, 600]);
  expect(await shown()).toBe('own 1');
  signer = { minutes: 100 };
  await clock.advance(10 * minute);
  await expect.poll(shown).toBe('signed 1');
});
