import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { RequestOptions } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KubeConfig } from '@kubernetes/client-node';
import { dump } from 'js-yaml';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  inClusterConfig,
  type LoadedConfig,
  parseKubeconfig,
  readKubeconfig,
} from '../../../operator/engine/kubeconfig.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gpulease-kubeconfig-'));
  for (const name of ['ca.crt', 'client.crt', 'client.key', 'token']) writeFileSync(join(folder, name), `${name}\n`);
});
afterAll(() => rmSync(folder, { recursive: true }));

const base64 = (text: string) => Buffer.from(text).toString('base64');
const document = (cluster: object, user: object | undefined, more: object = {}) => ({
  apiVersion: 'v1',
  kind: 'Config',
  'current-context': 'here',
  contexts: [
    { name: 'there', context: { cluster: 'other', user: 'other' } },
    { name: 'here', context: { cluster: 'mine', ...(user === undefined ? {} : { user: 'me' }), namespace: 'n' } },
  ],
  clusters: [
    { name: 'other', cluster: { server: 'https://elsewhere' } },
    { name: 'mine', cluster: { server: 'https://10.0.0.1:6443/', ...cluster } },
  ],
  users: [
    { name: 'other', user: { token: 'not-this-one' } },
    { name: 'me', user },
  ],
  ...more,
});
async function applied(config: LoadedConfig) {
  const options: RequestOptions = { headers: {} };
  await config.applyToHTTPSOptions(options);
  const { agent: _, ...rest } = options;
  const text = (value: unknown) => (Buffer.isBuffer(value) ? value.toString() : value);
  return Object.fromEntries(
    Object.entries(rest)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => [name, text(value)]),
  );
}
const isPlain = (config: LoadedConfig) => !(config instanceof KubeConfig);

const clusters: [string, object][] = [
  ['its CA inside', { 'certificate-authority-data': base64('inside') }],
  ['its CA in a file beside it', { 'certificate-authority': 'ca.crt' }],
  ['no verification, another name', { 'insecure-skip-tls-verify': true, 'tls-server-name': 'kubernetes' }],
  ['the certificates of the system', {}],
];
const users: [string, object][] = [
  ['a token', { token: 'secret' }],
  ['certificates inside', { 'client-certificate-data': base64('crt'), 'client-key-data': base64('key') }],
  ['certificates in files beside it', { 'client-certificate': 'client.crt', 'client-key': 'client.key' }],
  ['a name and a password', { username: 'me', password: 'secret' }],
  ['somebody else’s rights', { token: 'secret', as: 'somebody' }],
  ['nobody', {}],
  ['fields that are empty', { token: 'secret', exec: null, 'auth-provider': null }],
];

describe('a kubeconfig', () => {
  test.each(
    clusters.flatMap(([what, cluster]) => users.map(([who, user]) => ({ what, who, cluster, user }))),
  )('with $what and $who is read as client-node reads it', async ({ cluster, user }) => {
    const text = dump(document(cluster, user));
    writeFileSync(join(folder, 'config'), text);
    const ours = readKubeconfig(join(folder, 'config'));
    expect(isPlain(ours)).toBe(true);
    const theirs = new KubeConfig();
    theirs.loadFromFile(join(folder, 'config'));
    const { server, skipTLSVerify, tlsServerName } = theirs.getCurrentCluster()!;
    expect(ours.getCurrentCluster()).toMatchObject({ server, skipTLSVerify });
    expect(ours.getCurrentCluster()?.tlsServerName).toBe(tlsServerName);
    expect(await applied(ours)).toEqual(await applied(theirs));
    expect(await applied(parseKubeconfig(JSON.stringify(document(cluster, user)), folder))).toEqual(
      await applied(theirs),
    );
  });

  test('of nobody knows the cluster’s CA all the same', async () => {
    const config = parseKubeconfig(dump(document({ 'certificate-authority-data': base64('inside') }, undefined)));
    expect(await applied(config)).toEqual({ ca: 'inside', headers: {} });
  });

  test('names the file of a token, which is read each time', async () => {
    const config = parseKubeconfig(dump(document({}, { tokenFile: 'token' })), folder);
    expect((await applied(config)).headers).toEqual({ Authorization: 'Bearer token' });
    writeFileSync(join(folder, 'token'), 'rotated\n');
    expect((await applied(config)).headers).toEqual({ Authorization: 'Bearer rotated' });
  });

  test('has data that is stronger than a file, and a token than the file of one, as for kubectl', async () => {
    const config = parseKubeconfig(
      dump(
        document(
          { 'certificate-authority': 'ca.crt', 'certificate-authority-data': base64('inside') },
          { token: 'inside', tokenFile: 'token' },
        ),
      ),
      folder,
    );
    expect(await applied(config)).toMatchObject({ ca: 'inside', headers: { Authorization: 'Bearer inside' } });
  });

  test.each<[string, object, object]>([
    ['a proxy', { 'proxy-url': 'http://proxy:3128' }, { tokenFile: 'token' }],
    ['a plugin', {}, { exec: { apiVersion: 'client.authentication.k8s.io/v1', command: 'printf', args: ['x'] } }],
    ['an auth provider', {}, { 'auth-provider': { name: 'oidc', config: {} } }],
    ['something new', {}, { 'client-hardware-key': 'x' }],
  ])('with %s is left to client-node', async (what, cluster, user) => {
    const config = parseKubeconfig(dump(document(cluster, user)), folder);
    expect(isPlain(config)).toBe(false);
    expect(config.getCurrentCluster()?.server).toBe('https://10.0.0.1:6443');
    if (what !== 'a proxy') return;
    const { headers } = (await applied(config)) as { headers: { Authorization: string } };
    expect(headers.Authorization.trim()).toBe('Bearer rotated');
  });

  test.each<[string, object, RegExp]>([
    ['no server', document({ server: '' }, {}), /clusters\[1\]\.cluster\.server is missing/],
    ['a user that is not there', document({}, {}, { users: [] }), /./],
  ])('with %s says so, or names no cluster', (_, given, message) => {
    const read = () => parseKubeconfig(dump(given));
    try {
      expect(isPlain(read())).toBe(false);
    } catch (error) {
      expect((error as Error).message).toMatch(message);
    }
  });
});

test('a pod’s own account is a CA and a token in files', async () => {
  writeFileSync(join(folder, 'token'), 'pod\n');
  const config = inClusterConfig({ KUBERNETES_SERVICE_HOST: 'fd00::1', KUBERNETES_SERVICE_PORT: '443' }, folder);
  expect(config.getCurrentCluster()?.server).toBe('https://[fd00::1]:443');
  expect(await applied(config)).toEqual({ ca: 'ca.crt\n', headers: { Authorization: 'Bearer pod' } });
});
