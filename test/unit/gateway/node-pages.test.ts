/** What a lease is told of what its pods use: by whom, of which namespace, and in which words it is refused. */
import { afterEach, expect, test } from 'vitest';
import { type NodePage, nodePages } from '../../../operator/core/allocation/node-pages.ts';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { Refusal } from '../../../operator/core/allocation/refusal.ts';
import type { NodePages } from '../../../operator/gateway/service.ts';
import { type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide | undefined;
afterEach(() => side?.stop());

const asked: { node: string; page: NodePage; namespace: string }[] = [];
const telling = (answer: () => string): NodePages => ({
  read: async (node, page, namespace) => {
    asked.push({ node, page, namespace });
    return answer();
  },
});

async function start(pages?: NodePages) {
  asked.length = 0;
  side = await startProviderSide({ nodePages: pages });
  const lease = await side.lease();
  const get = async (path: string, token: string | undefined = lease.token) => {
    const response = await side!.gateway.app.inject({
      method: 'GET',
      url: `/v1/leases/${lease.leaseId}/kube/node/${path}`,
      headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
    });
    return { status: response.statusCode, type: response.headers['content-type'], body: response.body };
  };
  return { lease, get };
}

test.each(nodePages)('%s is told of the tenant’s namespace on the node of its lease', async (page) => {
  const { lease, get } = await start(telling(() => 'as it is'));
  const json = page === 'stats';
  expect(await get(page)).toEqual({
    status: 200,
    type: json ? 'application/json; charset=utf-8' : 'text/plain; version=0.0.4',
    body: 'as it is',
  });
  expect(asked).toEqual([{ node: 'node-a', page, namespace: tenantNamespace(lease.leaseId) }]);
});

test('nobody without a token, and no other lease, is told anything', async () => {
  const { get } = await start(telling(() => 'secret'));
  expect((await get('stats', '')).status).toBe(401);
  const other = await side!.lease();
  expect((await get('stats', other.token)).status).toBe(401);
  expect(asked).toEqual([]);
});

test.each([
  ['another page', 'logs', 404],
  ['a page below', 'stats/summary', 404],
  ['a query', 'stats?namespace=kube-system', 400],
])('%s is refused', async (_, path, status) => {
  const { get } = await start(telling(() => 'secret'));
  expect((await get(path)).status).toBe(status);
  expect(asked).toEqual([]);
});

test('a node that measures nothing is told as such', async () => {
  const { get } = await start(
    telling(() => {
      throw new Refusal(501, 'the provider’s node has no kubelet that measures');
    }),
  );
  const { status, body } = await get('metrics/resource');
  expect([status, JSON.parse(body).detail]).toEqual([501, 'the provider’s node has no kubelet that measures']);
});

test('a gateway that reads no metrics says so', async () => {
  const { get } = await start();
  const { status, body } = await get('stats');
  expect([status, JSON.parse(body).detail]).toEqual([501, 'this gateway reads no metrics of its nodes']);
});

test('a lease that has ended is told nothing', async () => {
  const { lease, get } = await start(telling(() => 'secret'));
  await side!.post(`/v1/leases/${lease.leaseId}/release`, {}, lease.token);
  await expect.poll(async () => (await get('stats')).status, { timeout: 5000 }).toBe(410);
});
