/** The price list becomes GpuOffers, nobody else's are touched, and consumers are told what the gateway itself says. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { load } from 'js-yaml';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { selfSigned, spkiSha256 } from '../../../operator/adapters/gateway/certificate.ts';
import { apiVersion, labels } from '../../../operator/api/labels.ts';
import { runSelfTest } from '../../../operator/cmd/run-self-test.ts';
import { forConsumers, runSetup } from '../../../operator/cmd/run-setup.ts';
import { type KubeObject, type Resource, resources } from '../../../operator/engine/types.ts';
import * as build from '../../support/builders.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

const namespace = 'gpulease-system';
const signal = new AbortController().signal;
const dir = mkdtempSync(join(tmpdir(), 'gpulease-setup-'));
const base64 = (text: string) => Buffer.from(text).toString('base64');

let server: https.Server;
let pin = '';
let certificate = '';
beforeAll(async () => {
  const { cert, key } = await selfSigned(['gpu.example.com'], new Date());
  pin = spkiSha256(cert);
  certificate = cert;
  server = https.createServer({ cert, key }, (request, response) => {
    const answers: Record<string, object> = {
      '/v1/provider': build.providerInfo(),
      '/v1/offers': { offers: [build.offerInfo()], observedAt: build.instant(0) },
    };
    const found = answers[request.url ?? ''];
    response.writeHead(found ? 200 : 404).end(JSON.stringify(found ?? {}));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
});
afterAll(() => {
  server.close();
  server.closeAllConnections();
  rmSync(dir, { recursive: true });
});

const inside = () => `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
const offerOf = (name: string, release?: string) =>
  ({
    apiVersion,
    kind: 'GpuOffer',
    metadata: { name, ...(release ? { labels: { [labels.priceList]: release } } : {}) },
    spec: {},
  }) as KubeObject;

async function withCertificate(more: Record<string, string> = {}, pem = certificate): Promise<FakeCluster> {
  const cluster = fakeCluster();
  await cluster.create(resources.secrets, {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { name: 'gpulease-gateway-tls', namespace },
    data: { 'tls.crt': base64(pem), ...more },
  } as KubeObject);
  return cluster;
}

const setup = (cluster: FakeCluster, offers: object, ...more: string[]) =>
  setupWith(cluster, offers, ['--public-url', 'https://gpu.example.com:8443', ...more]);

async function setupWith(cluster: FakeCluster, offers: object, more: readonly string[]) {
  const file = join(dir, 'offers.json');
  writeFileSync(file, JSON.stringify(offers));
  const said: string[] = [];
  const args = ['--offers', file, '--gateway', inside(), '--release', 'rent', '--wait-seconds', '0', ...more];
  await runSetup(args, {}, { say: (line) => said.push(line), connect: () => cluster }, signal);
  const told = cluster.object(resources.configMaps, { namespace, name: forConsumers }) as
    | { data?: Record<string, string> }
    | undefined;
  return { said: said.join('\n'), told: told?.data ?? {} };
}

const names = (cluster: FakeCluster) =>
  cluster.list(resources.gpuOffers).then(({ items }) => items.map((one) => one.metadata.name).sort());

describe('setting a provider up', () => {
  it('writes offers of the list, removes those that left it, and leaves others alone', async () => {
    const cluster = await withCertificate();
    await cluster.create(resources.gpuOffers, offerOf('gone', 'rent'));
    await cluster.create(resources.gpuOffers, offerOf('own'));
    await cluster.create(resources.gpuOffers, offerOf('other', 'another-release'));
    await setup(cluster, { h100: { model: 'H100-SXM' } });
    expect(await names(cluster)).toEqual(['h100', 'other', 'own']);
    expect(cluster.object(resources.gpuOffers, { name: 'h100' })).toMatchObject({
      metadata: { labels: { [labels.priceList]: 'rent' } },
      spec: { model: 'H100-SXM' },
    });
  });

  it('takes nobody’s offer from them', async () => {
    const cluster = await withCertificate();
    await cluster.create(resources.gpuOffers, offerOf('h100'));
    await expect(setup(cluster, { h100: {} })).rejects.toThrow('GpuOffer h100 is there and not of this price list');
  });

  it('tells consumers address, rails and the key to pin', async () => {
    const { told } = await setup(await withCertificate(), {}, '--provider-name', 'ams');
    expect(load(told['provider.yaml']!)).toMatchObject({
      kind: 'GpuProvider',
      metadata: { name: 'ams' },
      spec: {
        endpoint: { url: 'https://gpu.example.com:8443', spkiSHA256: pin },
        identity: { address: build.providerInfo().address },
        payment: { rails: [{ escrow: build.escrowAddress, maxEscrow: '100' }] },
      },
    });
    expect(told['offers.txt']).toContain(build.offerInfo().model);
  });

  it('tells of a gateway that dials out how it is reached, with nothing to pin', async () => {
    const { told } = await setupWith(await withCertificate(), {}, ['--provider-name', 'nat']);
    const provider = load(told['provider.yaml']!) as { spec: { endpoint: object; identity: object } };
    expect(provider.spec.endpoint).toEqual({ via: 'Reverse' });
    expect(provider.spec.identity).toEqual({ address: build.providerInfo().address });
    expect(told['provider.yaml']).toContain('via: Relay');
  });

  it('gives the CA of a certificate that has one, and no pin', async () => {
    const cluster = await withCertificate({ 'ca.crt': base64('CA') });
    const { told } = await setup(cluster, {}, '--tls', 'CertManager');
    expect((load(told['provider.yaml']!) as { spec: { endpoint: object } }).spec.endpoint).toEqual({
      url: 'https://gpu.example.com:8443',
      caBundle: base64('CA'),
    });
  });

  it('believes no gateway with another key, and says that it did not answer', async () => {
    const { cert } = await selfSigned(['gpu.example.com'], new Date());
    const { told, said } = await setup(await withCertificate({}, cert), {});
    expect(told['provider.yaml']).toBeUndefined();
    expect(told['README.txt']).toContain('did not answer');
    expect(said).toContain('is pinned');
  });
});

const deployments: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'deployments',
  kind: 'Deployment',
  namespaced: true,
};

describe('a test of what was installed', () => {
  async function provider(change: { ready?: boolean; renewed?: Date } = {}) {
    const cluster = await withCertificate();
    await cluster.create(resources.crds, {
      apiVersion: 'apiextensions.k8s.io/v1',
      kind: 'CustomResourceDefinition',
      metadata: { name: 'gpuoffers.gpulease.dev' },
      status: { conditions: [{ type: 'Established', status: 'True' }] },
    } as KubeObject);
    await cluster.create(deployments, {
      apiVersion: 'apps/v1',
      kind: 'Deployment',
      metadata: { name: 'gpulease-gateway', namespace },
      status: { availableReplicas: change.ready === false ? 0 : 1 },
    } as KubeObject);
    await cluster.create(resources.leases, {
      apiVersion: 'coordination.k8s.io/v1',
      kind: 'Lease',
      metadata: { name: 'gpulease-gateway', namespace },
      spec: { holderIdentity: 'x', renewTime: (change.renewed ?? build.at(0)).toISOString() },
    } as KubeObject);
    const said: string[] = [];
    const args = ['provider', '--gateway', inside(), '--deployment', 'gpulease-gateway', '--lock', 'gpulease-gateway'];
    const status = await runSelfTest(
      args,
      {},
      { say: (line) => said.push(line), connect: () => cluster, now: () => build.at(10) },
      signal,
    );
    return { status, said: said.join('\n') };
  }

  it('passes when all of it works', async () => {
    const { status, said } = await provider();
    expect(said).toContain('ok      the gateway answers');
    expect(said).toContain('all is well');
    expect(status).toBe(0);
  });

  it.each([
    ['no pod is ready', { ready: false }, 'FAILED  deployment gpulease-gateway: has no pod that is ready'],
    ['nobody leads', { renewed: build.at(-1000) }, 'FAILED  leader lock gpulease-gateway: was renewed 1010 s ago'],
  ])('fails when %s, and says what to look at', async (_, change, line) => {
    const { status, said } = await provider(change);
    expect(said).toContain(line);
    expect(status).toBe(1);
  });

  it('fails where kinds are missing', async () => {
    const said: string[] = [];
    expect(
      await runSelfTest(
        ['consumer', '--without-policies'],
        {},
        { say: (line) => said.push(line), connect: () => fakeCluster() },
        signal,
      ),
    ).toBe(1);
    expect(said).toContain('FAILED  kind GpuLease: is not there: set crds.enabled=true, or install it');
  });
});
