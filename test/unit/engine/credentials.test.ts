import { expect, test } from 'vitest';
import { readCredentials } from '../../../operator/engine/credentials.ts';
import { authority } from '../adapters/provider/tls.ts';

const { cert, key } = await (await authority('clients')).issue([{ CN: ['us'] }], { client: true });
const base64 = (text: string) => Buffer.from(text).toString('base64');

function kubeconfig(user: object, cluster: object = {}): string {
  return JSON.stringify({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'c',
    contexts: [{ name: 'c', context: { cluster: 'c', user: 'u' } }],
    clusters: [
      {
        name: 'c',
        cluster: { server: 'https://10.0.0.1:6443', 'certificate-authority-data': base64('the CA'), ...cluster },
      },
    ],
    users: [{ name: 'u', user }],
  });
}

const text = (value: Buffer | string | undefined) => value && String(value);

test.each<[string, object, object, object]>([
  [
    'a client certificate',
    { 'client-certificate-data': base64(cert), 'client-key-data': base64(key) },
    {},
    { headers: {}, cert, key, clusterCa: 'the CA' },
  ],
  ['a token', { token: 't' }, {}, { headers: { Authorization: 'Bearer t' }, clusterCa: 'the CA' }],
  [
    // Else a kubelet, of whatever certificate, would be trusted like the API server that somebody chose not to verify.
    'a token, of a server that is not verified: no CA, so that nobody else is trusted either',
    { token: 't' },
    { 'certificate-authority-data': undefined, 'insecure-skip-tls-verify': true },
    { headers: { Authorization: 'Bearer t' }, clusterCa: undefined },
  ],
])('who we are to a kubelet: %s', async (_, user, cluster, expected) => {
  const identity = await readCredentials(kubeconfig(user, cluster)).identity();
  expect({
    headers: identity.headers,
    cert: text(identity.cert),
    key: text(identity.key),
    clusterCa: text(identity.clusterCa),
  }).toEqual({
    cert: undefined,
    key: undefined,
    ...expected,
  });
});
