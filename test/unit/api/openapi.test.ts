/** The document at /v1/openapi.json says what the gateway does: every route and query, no other, and sound by itself. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openApi } from '../../../operator/api/openapi.ts';
import { checkQuery, kubeTarget } from '../../../operator/core/allocation/kube-path.ts';
import { type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

interface Operation {
  operationId: string;
  summary: string;
  parameters?: { name: string; in: string; required?: boolean; schema?: object }[];
  responses: Record<string, { description: string }>;
  security?: object[];
}
interface Document {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, object> };
}

const document = openApi('test') as unknown as Document;
const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
);
const kube = '/v1/leases/{leaseId}/kube/';
const leaseId = `0x${'1'.repeat(64)}`;

let side: ProviderSide;
beforeAll(async () => {
  side = await startProviderSide();
});
afterAll(() => side.stop());

test('it is served, to everybody', async () => {
  const { status, body } = await side.get('/v1/openapi.json');
  expect(status).toBe(200);
  expect(body).toMatchObject({ openapi: '3.1.0', info: { title: 'gpulease gateway' } });
});

test('every route is in it, and what is not in it is told that it does not exist', async () => {
  const documented = new Set(operations.map(({ path, method }) => `${method} ${path}`));
  for (const { method, url } of side.gateway.routes) {
    const path = url.replace(/:(\w+)/g, '{$1}');
    if (path.endsWith('/kube/*')) continue;
    if (documented.delete(`${method} ${path}`)) continue;
    const answer = await side.gateway.app.inject({ method: method as 'GET', url: url.replace(':leaseId', leaseId) });
    expect(answer.statusCode, `${method} ${url} is not in the document`).toBe(405);
  }
  const left = [...documented].filter((one) => !one.includes(kube));
  expect(left, 'documented, but there is no such route').toEqual([]);
});

test('every path of the narrow proxy is in it with its methods, and no other', () => {
  const kinds = ['pods', 'configmaps', 'secrets', 'persistentvolumeclaims', 'events', 'node'];
  const rests = [
    ...kinds.flatMap((kind) => [kind, `${kind}/{name}`]),
    ...['log', 'exec', 'attach', 'portforward', 'status', 'proxy'].map((stream) => `pods/{name}/${stream}`),
    ...['stats', 'metrics/resource', 'metrics/cadvisor', 'metrics/probes'].map((page) => `node/${page}`),
  ];
  const actual = rests.flatMap((rest) =>
    (kubeTarget(rest.replace('{name}', 'x'))?.methods ?? []).map((method) => `${method} ${kube}${rest}`),
  );
  const described = operations
    .filter(({ path }) => path.startsWith(kube))
    .map(({ path, method }) => `${method} ${path}`);
  expect(described.toSorted()).toEqual(actual.toSorted());
});

const samples: Record<string, string> = {
  resourceVersionMatch: 'Exact',
  stream: 'All',
  ports: '80,443',
  port: '80',
  container: 'main',
};
const sampleOf = (name: string): string =>
  samples[name] ?? (/Seconds|limit|tailLines|limitBytes/.test(name) && name !== 'sinceTime' ? '1' : 'true');

test('every query parameter in it is taken', () => {
  for (const { path, method, operation } of operations.filter((one) => one.path.startsWith(kube))) {
    const target = kubeTarget(path.slice(kube.length).replace('{name}', 'x'))!;
    for (const { name } of operation.parameters?.filter((one) => one.in === 'query') ?? [])
      expect(checkQuery(target, method, [[name, sampleOf(name)]]), `${method} ${path}?${name}`).not.toHaveProperty(
        'refused',
      );
  }
});

test('what needs no token in it needs none, and everything else does', async () => {
  for (const { path, method, operation } of operations) {
    const url = path.replace('{leaseId}', leaseId).replace('{name}', 'x');
    const { statusCode } = await side.gateway.app.inject({
      ...{ method: method as 'GET', url },
      ...(method === 'GET' ? {} : { payload: '{}', headers: { 'content-type': 'application/json' } }),
    });
    if (operation.security?.length === 0) expect(statusCode, `${method} ${path}`).not.toBe(401);
    else expect(statusCode, `${method} ${path}`).toBe(401);
  }
});

// What the meta-schema of OpenAPI 3.1 asks for, as far as such a document can break it.
test('it is sound: references resolve, parameters of paths are declared, operations have names of their own', () => {
  expect(document.openapi).toMatch(/^3\.1\.\d+$/);
  const text = JSON.stringify(document);
  for (const [, name] of text.matchAll(/"\$ref":"#\/components\/schemas\/(\w+)"/g))
    expect(document.components.schemas).toHaveProperty(name!);
  expect(text).not.toMatch(/"\$ref":"(?!#\/components\/schemas\/)/);
  expect(text).not.toContain('"nullable"');
  expect(new Set(operations.map(({ operation }) => operation.operationId)).size).toBe(operations.length);
  for (const { path, operation } of operations) {
    const inPath = operation.parameters?.filter((one) => one.in === 'path') ?? [];
    expect(inPath.map(({ name }) => `{${name}}`)).toEqual(path.match(/\{\w+\}/g) ?? []);
    for (const one of inPath) expect(one.required).toBe(true);
    for (const one of operation.parameters ?? []) expect(one.schema).toBeTypeOf('object');
    expect(Object.keys(operation.responses).every((status) => /^([1-5]\d\d|default)$/.test(status))).toBe(true);
    for (const { description } of Object.values(operation.responses)) expect(description).not.toBe('');
  }
});
