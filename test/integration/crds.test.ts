/** The kinds on a real API server: what it takes, what it fills in, and what a person reads when it refuses. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { customResourceDefinition } from '../../operator/api/crd.ts';
import { kinds } from '../../operator/api/kinds.ts';
import { apiVersion, group, version } from '../../operator/api/labels.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { resources } from '../../operator/engine/types.ts';
import type { PlaneAccess } from '../../operator/sandbox/clusters/plane.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { eventually, planes, quiet, type TestNamespace, testNamespace } from '../support/clusters.ts';

type Json = Record<string, unknown>;
interface Status {
  readonly message: string;
  readonly reason: string;
}

let consumer: PlaneAccess;
let namespace: TestNamespace;
let kubectl: string;
const installed: string[] = [];

const crdPath = '/apis/apiextensions.k8s.io/v1/customresourcedefinitions';
const pathOf = (kind: string) => {
  const definition = kinds.find((one) => one.kind === kind)!;
  const scope = definition.scope === 'Namespaced' ? `/namespaces/${namespace.name}` : '';
  return `/apis/${group}/${version}${scope}/${definition.plural}`;
};
const strict = 'fieldValidation=Strict';

beforeAll(async () => {
  ({ consumer } = await planes());
  kubectl = (await ensureTools({ need: ['plane'], report: quiet })).kubectl;
  namespace = await testNamespace(consumer, 'crds');
  for (const kind of kinds) {
    const crd = customResourceDefinition(kind) as { metadata: { name: string } };
    const answer = await consumer.api.request('POST', crdPath, crd);
    // Another file of this run may have brought them.
    if (answer.status === 409) continue;
    expect(answer.text, `CustomResourceDefinition of ${kind.kind}`).toContain('"CustomResourceDefinition"');
    expect(answer.status).toBe(201);
    installed.push(crd.metadata.name);
  }
});

afterAll(async () => {
  await namespace?.remove();
  for (const name of installed) await consumer.api.request('DELETE', `${crdPath}/${name}`);
});

const minimalLease = (): Json => ({
  gpu: { models: ['RTX4090'] },
  pricing: { maxPricePerGpuHour: '0.60' },
});
const minimalProvider = (): Json => ({
  endpoint: { url: 'https://gpu.ams-dc1.example:8443' },
  identity: { address: '0x52908400098527886E0F7030069857D2E4169EE7' },
  payment: {
    rails: [
      {
        chainId: 8453,
        escrow: '0x8617E340B3D01FA5F11F306F4090FD50E238070D',
        token: '0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913',
        assetSymbol: 'USDC',
        maxEscrow: '500',
      },
    ],
  },
});
const minimalOffer = (): Json => ({ model: 'RTX4090', prices: [{ assetSymbol: 'USDC', perGpuHour: '0.34' }] });
const minimalBudget = (): Json => ({ limits: [{ window: 'Day', amount: '200' }] });
const minimal: Record<string, () => Json> = {
  GpuLease: minimalLease,
  GpuProvider: minimalProvider,
  GpuOffer: minimalOffer,
  GpuBudget: minimalBudget,
  GpuAccess: () => ({}),
};

/** A good object with the value at one dotted path replaced, or removed when undefined. */
function changed(spec: Json, path: string, value: unknown): Json {
  const copy = structuredClone(spec);
  const keys = path.split('.');
  const last = keys.pop()!;
  let at: Json = copy;
  for (const key of keys) {
    at[key] ??= {};
    at = at[key] as Json;
  }
  if (value === undefined) delete at[last];
  else at[last] = value;
  return copy;
}

const objectOf = (kind: string, spec: unknown, name = 'tried') => ({ apiVersion, kind, metadata: { name }, spec });
const dryRun = (kind: string, spec: unknown) =>
  consumer.api.request('POST', `${pathOf(kind)}?dryRun=All&${strict}`, objectOf(kind, spec));

async function applied(manifest: object): Promise<{ code: number; text: string }> {
  const run = promisify(execFile)(kubectl, [
    `--kubeconfig=${consumer.kubeconfigPath}`,
    `--namespace=${namespace.name}`,
    'apply',
    '-f',
    '-',
  ]);
  run.child.stdin!.end(JSON.stringify(manifest));
  return run.then(
    ({ stdout }) => ({ code: 0, text: stdout }),
    (error: { code: number; stderr: string }) => ({ code: error.code, text: error.stderr }),
  );
}

describe('the kinds', () => {
  it.each(kinds.map((kind) => kind.plural))('%s are accepted and established', async (plural) => {
    const path = `${crdPath}/${plural}.${group}`;
    interface Crd {
      status: { conditions: { type: string; status: string; message: string }[] };
    }
    const conditions = async () => (await consumer.api.call<Crd>('GET', path)).status.conditions ?? [];
    await eventually(
      async () => (await conditions()).some((c) => c.type === 'Established' && c.status === 'True'),
      `${plural} to be established`,
    );
    // A schema that is not structural, or a bad printer column, shows up here.
    expect((await conditions()).filter((c) => c.type === 'NonStructuralSchema')).toEqual([]);
    expect((await conditions()).find((c) => c.type === 'NamesAccepted')).toMatchObject({ status: 'True' });
  });

  it('fills in the smallest lease', async () => {
    const lease = await consumer.api.call<{ spec: Json }>(
      'POST',
      `${pathOf('GpuLease')}?${strict}`,
      objectOf('GpuLease', minimalLease(), 'smallest'),
    );
    expect(lease.spec).toEqual({
      suspend: false,
      gpu: { models: ['RTX4090'], count: 1, interconnect: 'Any' },
      requirements: [],
      capacityType: 'OnDemand',
      pricing: { maxPricePerGpuHour: '0.60', assetSymbol: 'USDC' },
      term: { durationSeconds: 3600 },
      approval: 'Automatic',
      startTimeoutSeconds: 900,
      retry: { maxAttempts: 3, avoidFailedProviderSeconds: 3600 },
      drainTimeoutSeconds: 300,
      access: { serviceAccountTokens: 'None' },
      services: [],
      node: { untainted: false, podIP: 'None' },
    });
  });

  it('fills in the smallest provider and offer', async () => {
    const provider = (await dryRun('GpuProvider', minimalProvider())).json<{ spec: Json }>();
    expect(provider.spec).toMatchObject({
      weight: 50,
      stopPolicy: 'None',
      probe: { intervalSeconds: 15, timeoutSeconds: 5, failureThreshold: 3 },
    });
    const offer = (await dryRun('GpuOffer', minimalOffer())).json<{ spec: Json }>();
    expect(offer.spec).toEqual({
      ...minimalOffer(),
      interconnect: 'PCIe',
      capacityType: 'OnDemand',
      minDurationSeconds: 60,
      maxDurationSeconds: 2592000,
    });
  });

  it('fills in the smallest budget', async () => {
    const budget = (await dryRun('GpuBudget', minimalBudget())).json<{ spec: Json }>();
    expect(budget.spec).toEqual({
      ...minimalBudget(),
      assetSymbol: 'USDC',
      otherAssets: 'Deny',
      onExceeded: 'Deny',
      graceSeconds: 600,
      alertPercents: [50, 80, 100],
    });
  });

  it.each(kinds)('fills in for $kind just what the Zod schema fills in', async ({ kind, spec }) => {
    const stored = (await dryRun(kind, minimal[kind]!())).json<{ spec: Json }>();
    expect(stored.spec).toEqual(spec.parse(minimal[kind]!()));
  });
});

/** field, value, and what is allowed, as the API server says it. */
interface Bad {
  readonly kind: string;
  readonly path: string;
  readonly value: unknown;
  readonly says: readonly string[];
  /** Only the API server's own rules (CEL, list types) can tell: Zod takes it. */
  readonly cel?: true;
}
const bad: Record<string, Bad> = {
  'a lease that names no model': {
    kind: 'GpuLease',
    path: 'gpu.models',
    value: [],
    says: ['spec.gpu.models: Invalid value: 0', 'should have at least 1 items'],
  },
  'a lease of a model that nobody knows': {
    kind: 'GpuLease',
    path: 'gpu.models',
    value: ['RTX9090'],
    says: ['spec.gpu.models[0]: Unsupported value: "RTX9090": supported values: "RTX4090", "RTX5090", "L40S"'],
  },
  'a lease that names a model twice': {
    kind: 'GpuLease',
    path: 'gpu.models',
    value: ['RTX4090', 'RTX4090'],
    says: ['spec.gpu.models[1]: Duplicate value: "RTX4090"'],
    cel: true,
  },
  'a lease of 17 GPUs': {
    kind: 'GpuLease',
    path: 'gpu.count',
    value: 17,
    says: ['spec.gpu.count: Invalid value: 17', 'should be less than or equal to 16'],
  },
  'a lease without a price limit': {
    kind: 'GpuLease',
    path: 'pricing.maxPricePerGpuHour',
    value: undefined,
    says: ['spec.pricing.maxPricePerGpuHour: Required value'],
  },
  'a price that is not quoted': {
    kind: 'GpuLease',
    path: 'pricing.maxPricePerGpuHour',
    value: 0.6,
    says: ['spec.pricing.maxPricePerGpuHour: Invalid value: "number"', 'must be of type string'],
  },
  'a price of nothing': {
    kind: 'GpuLease',
    path: 'pricing.maxPricePerGpuHour',
    value: '0',
    says: ['spec.pricing.maxPricePerGpuHour: Invalid value: "0": maxPricePerGpuHour must be above 0'],
    cel: true,
  },
  'a price with seven decimals': {
    kind: 'GpuLease',
    path: 'pricing.maxPricePerGpuHour',
    value: '0.6000001',
    says: ['spec.pricing.maxPricePerGpuHour: Invalid value: "0.6000001"', 'should match', '{1,6}'],
  },
  'a negative price': {
    kind: 'GpuLease',
    path: 'pricing.maxPricePerGpuHour',
    value: '-1',
    says: ['spec.pricing.maxPricePerGpuHour: Invalid value: "-1"', 'should match'],
  },
  'a spend limit of nothing': {
    kind: 'GpuLease',
    path: 'pricing.spendLimit',
    value: '0.000',
    says: ['spec.pricing.spendLimit: Invalid value: "0.000": spendLimit must be above 0'],
    cel: true,
  },
  'a term of less than a minute': {
    kind: 'GpuLease',
    path: 'term.durationSeconds',
    value: 59,
    says: ['spec.term.durationSeconds: Invalid value: 59', 'should be greater than or equal to 60'],
  },
  'a term of more than thirty days': {
    kind: 'GpuLease',
    path: 'term.durationSeconds',
    value: 2_592_001,
    says: ['spec.term.durationSeconds: Invalid value: 2592001', 'should be less than or equal to 2592000'],
  },
  'a capacity type that nobody sells': {
    kind: 'GpuLease',
    path: 'capacityType',
    value: 'Reserved',
    says: ['spec.capacityType: Unsupported value: "Reserved": supported values: "OnDemand", "Spot"'],
  },
  'an approved quote without manual approval': {
    kind: 'GpuLease',
    path: 'approvedQuoteHash',
    value: `0x${'a'.repeat(64)}`,
    says: ['spec: Invalid value: approvedQuoteHash needs approval: Manual'],
    cel: true,
  },
  'an approved quote that is no hash': {
    kind: 'GpuLease',
    path: 'approvedQuoteHash',
    value: 'yes',
    says: ['spec.approvedQuoteHash: Invalid value: "yes"', 'should match', '[0-9a-fA-F]{64}'],
  },
  'a requirement In without values': {
    kind: 'GpuLease',
    path: 'requirements',
    value: [{ key: 'topology.kubernetes.io/region', operator: 'In' }],
    says: ['spec.requirements[0]: Invalid value: In and NotIn need at least one value'],
    cel: true,
  },
  'a requirement Exists with values': {
    kind: 'GpuLease',
    path: 'requirements',
    value: [{ key: 'topology.kubernetes.io/region', operator: 'Exists', values: ['eu'] }],
    says: ['spec.requirements[0]: Invalid value: Exists and DoesNotExist take no values'],
    cel: true,
  },
  'a requirement Gte of a word': {
    kind: 'GpuLease',
    path: 'requirements',
    value: [{ key: 'nvidia.com/cuda.driver-version.major', operator: 'Gte', values: ['new'] }],
    says: ['spec.requirements[0]: Invalid value: Gt, Gte, Lt and Lte take exactly one whole number'],
    cel: true,
  },
  'a requirement with an operator of its own': {
    kind: 'GpuLease',
    path: 'requirements',
    value: [{ key: 'a', operator: 'Like', values: ['x'] }],
    says: ['spec.requirements[0].operator: Unsupported value: "Like": supported values: "In", "NotIn"'],
  },
  'a requirement on what spec.gpu says': {
    kind: 'GpuLease',
    path: 'requirements',
    value: [{ key: 'nvidia.com/gpu.product', operator: 'In', values: ['NVIDIA-L40S'] }],
    says: ['spec.requirements: Invalid value: use spec.gpu for product, count and memory'],
    cel: true,
  },
  'every namespace, and one by name': {
    kind: 'GpuLease',
    path: 'access.namespaces',
    value: ['*', 'team-a'],
    says: ['spec.access.namespaces: Invalid value: "*" means every namespace: it stands alone'],
    cel: true,
  },
  'a pattern of namespaces': {
    kind: 'GpuLease',
    path: 'access.namespaces',
    value: ['team-*'],
    says: ['spec.access.namespaces[0]: Invalid value: "team-*"', 'should match'],
  },
  'a pod address of another kind': {
    kind: 'GpuLease',
    path: 'node.podIP',
    value: 'Consumer',
    says: ['spec.node.podIP: Unsupported value: "Consumer": supported values: "None", "Provider"'],
  },
  'a Service twice': {
    kind: 'GpuLease',
    path: 'services',
    value: [{ name: 'db' }, { name: 'db', ports: [5432] }],
    says: ['spec.services: Invalid value: a Service is named once'],
    cel: true,
  },
  'a Service with its namespace in its name': {
    kind: 'GpuLease',
    path: 'services',
    value: [{ name: 'db.prod' }],
    says: ['spec.services[0].name: Invalid value: "db.prod"'],
  },
  'a Service on no port': {
    kind: 'GpuLease',
    path: 'services',
    value: [{ name: 'db', ports: [] }],
    says: ['spec.services[0].ports'],
  },
  'more Services than a lease carries': {
    kind: 'GpuLease',
    path: 'services',
    value: Array.from({ length: 33 }, (_, i) => ({ name: `db-${i}` })),
    says: ['spec.services: Too many: 33: must have at most 32 items'],
  },
  'a node label of our own group': {
    kind: 'GpuLease',
    path: 'node.labels',
    value: { 'gpulease.dev/lease': 'other' },
    says: ['spec.node.labels: Invalid value: labels of gpulease.dev and node-role.kubernetes.io are not yours'],
    cel: true,
  },
  'a node label of a subgroup of ours': {
    kind: 'GpuLease',
    path: 'node.labels',
    value: { 'x.gpulease.dev/lease': 'other' },
    says: ['spec.node.labels: Invalid value: labels of gpulease.dev'],
    cel: true,
  },
  'a node that claims to be a control plane': {
    kind: 'GpuLease',
    path: 'node.labels',
    value: { 'node-role.kubernetes.io/control-plane': '' },
    says: ['spec.node.labels: Invalid value: labels of gpulease.dev and node-role.kubernetes.io'],
    cel: true,
  },
  'a token that is an alternative to itself': {
    kind: 'GpuLease',
    path: 'pricing.alternatives',
    value: [{ assetSymbol: 'USDC', maxPricePerGpuHour: '1' }],
    says: ['spec.pricing: Invalid value: assetSymbol is no alternative to itself'],
    cel: true,
  },
  'an alternative without a limit': {
    kind: 'GpuLease',
    path: 'pricing.alternatives',
    value: [{ assetSymbol: 'GPU' }],
    says: ['spec.pricing.alternatives[0].maxPricePerGpuHour: Required value'],
  },
  'the same alternative twice': {
    kind: 'GpuLease',
    path: 'pricing.alternatives',
    value: [
      { assetSymbol: 'GPU', maxPricePerGpuHour: '1' },
      { assetSymbol: 'GPU', maxPricePerGpuHour: '2' },
    ],
    says: ['spec.pricing.alternatives[1]: Duplicate value'],
    cel: true,
  },
  'an http endpoint': {
    kind: 'GpuProvider',
    path: 'endpoint.url',
    value: 'http://gpu.example.com:8443',
    says: ['spec.endpoint: Invalid value: url must be an https URL, e.g. https://gpu.example.com:8443'],
    cel: true,
  },
  'an endpoint that says nothing': {
    kind: 'GpuProvider',
    path: 'endpoint',
    value: {},
    says: ['spec.endpoint: Invalid value: url is missing: the URL of the gateway, or via: Reverse or Relay'],
    cel: true,
  },
  'a url for a provider that dials in': {
    kind: 'GpuProvider',
    path: 'endpoint.via',
    value: 'Reverse',
    says: ['url is for via: Direct; a provider that is reached by Reverse or Relay is known by identity.address'],
    cel: true,
  },
  'a way by relay without one': {
    kind: 'GpuProvider',
    path: 'endpoint',
    value: { via: 'Relay' },
    says: ['relay and via: Relay go together'],
    cel: true,
  },
  'a relay that is not for use': {
    kind: 'GpuProvider',
    path: 'endpoint.relay',
    value: { url: 'https://relay.example.com' },
    says: ['relay and via: Relay go together'],
    cel: true,
  },
  'a relay that is reached in the clear': {
    kind: 'GpuProvider',
    path: 'endpoint',
    value: { via: 'Relay', relay: { url: 'http://relay.example.com' } },
    says: ['relay.url must be an https URL, e.g. https://relay.example.com:9444'],
    cel: true,
  },
  'an endpoint that is no URL': {
    kind: 'GpuProvider',
    path: 'endpoint.url',
    value: 'gpu.example.com',
    says: ['spec.endpoint: Invalid value: url must be an https URL'],
    cel: true,
  },
  'an endpoint with a slash at the end': {
    kind: 'GpuProvider',
    path: 'endpoint.url',
    value: 'https://gpu.example.com/',
    says: ['spec.endpoint: Invalid value: url must not end with a slash'],
    cel: true,
  },
  'an address that is too short': {
    kind: 'GpuProvider',
    path: 'identity.address',
    value: '0x5290',
    says: ['spec.identity.address: Invalid value: "0x5290"', 'should match', '0x[0-9a-fA-F]{40}'],
  },
  'a probe that waits longer than its interval': {
    kind: 'GpuProvider',
    path: 'probe',
    value: { intervalSeconds: 5, timeoutSeconds: 6 },
    says: ['spec.probe: Invalid value: timeoutSeconds must not be above intervalSeconds'],
    cel: true,
  },
  'a provider that cannot be paid': {
    kind: 'GpuProvider',
    path: 'payment.rails',
    value: [],
    says: ['spec.payment.rails: Invalid value: 0', 'should have at least 1 items'],
  },
  'a rail without a limit': {
    kind: 'GpuProvider',
    path: 'payment.rails',
    value: [
      {
        chainId: 1,
        escrow: '0x8617E340B3D01FA5F11F306F4090FD50E238070D',
        token: '0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913',
        assetSymbol: 'USDC',
      },
    ],
    says: ['spec.payment.rails[0].maxEscrow: Required value'],
  },
  'the same rail twice': {
    kind: 'GpuProvider',
    path: 'payment.rails',
    value: [
      ...(minimalProvider().payment as { rails: Json[] }).rails,
      ...(minimalProvider().payment as { rails: Json[] }).rails,
    ],
    says: ['spec.payment.rails[1]: Duplicate value'],
    cel: true,
  },
  'a stop policy that nobody knows': {
    kind: 'GpuProvider',
    path: 'stopPolicy',
    value: 'Kill',
    says: ['spec.stopPolicy: Unsupported value: "Kill": supported values: "None", "Hold", "HoldAndDrain"'],
  },
  'an offer that costs nothing': {
    kind: 'GpuOffer',
    path: 'prices',
    value: [{ assetSymbol: 'USDC', perGpuHour: '0.0' }],
    says: ['spec.prices[0]: Invalid value: perGpuHour must be above 0'],
    cel: true,
  },
  'an offer with two prices in one token': {
    kind: 'GpuOffer',
    path: 'prices',
    value: [
      { assetSymbol: 'USDC', perGpuHour: '0.3' },
      { assetSymbol: 'USDC', perGpuHour: '0.4' },
    ],
    says: ['spec.prices[1]: Duplicate value', 'USDC'],
    cel: true,
  },
  'a budget that limits nothing': {
    kind: 'GpuBudget',
    path: 'limits',
    value: [],
    says: ['spec: Invalid value: a budget limits something: give limits or maxConcurrentGpus'],
    cel: true,
  },
  'a budget with two limits of a day': {
    kind: 'GpuBudget',
    path: 'limits',
    value: [
      { window: 'Day', amount: '100' },
      { window: 'Day', amount: '200' },
    ],
    says: ['spec.limits[1]: Duplicate value', 'Day'],
    cel: true,
  },
  'a budget of a week': {
    kind: 'GpuBudget',
    path: 'limits',
    value: [{ window: 'Week', amount: '100' }],
    says: ['spec.limits[0].window: Unsupported value: "Week": supported values: "Hour", "Day", "Month"'],
  },
  'a limit that is not quoted': {
    kind: 'GpuBudget',
    path: 'limits',
    value: [{ window: 'Day', amount: 200 }],
    says: ['spec.limits[0].amount: Invalid value: "integer"', 'must be of type string'],
  },
  'a limit below nothing': {
    kind: 'GpuBudget',
    path: 'limits',
    value: [{ window: 'Day', amount: '-1' }],
    says: ['spec.limits[0].amount: Invalid value: "-1"', 'should match'],
  },
  'fewer than no GPUs': {
    kind: 'GpuBudget',
    path: 'maxConcurrentGpus',
    value: -1,
    says: ['spec.maxConcurrentGpus: Invalid value: -1', 'should be greater than or equal to 0'],
  },
  'an alert beyond all of a limit': {
    kind: 'GpuBudget',
    path: 'alertPercents',
    value: [50, 101],
    says: ['spec.alertPercents[1]: Invalid value: 101', 'should be less than or equal to 100'],
  },
  'an alert twice': {
    kind: 'GpuBudget',
    path: 'alertPercents',
    value: [50, 50],
    says: ['spec.alertPercents[1]: Duplicate value: 50'],
    cel: true,
  },
  'a policy that nobody knows': {
    kind: 'GpuBudget',
    path: 'onExceeded',
    value: 'Kill',
    says: ['spec.onExceeded: Unsupported value: "Kill": supported values: "Alert", "Deny", "Drain"'],
  },
  'a grace of more than a day': {
    kind: 'GpuBudget',
    path: 'graceSeconds',
    value: 86_401,
    says: ['spec.graceSeconds: Invalid value: 86401', 'should be less than or equal to 86400'],
  },
};

describe('a wrong manifest is refused at apply, with field, value and what is allowed', () => {
  it.each(Object.entries(bad))('%s', async (_, { kind, path, value, says }) => {
    const answer = await dryRun(kind, changed(minimal[kind]!(), path, value));
    const { message, reason } = answer.json<Status>();
    expect([answer.status, reason], message).toEqual([422, 'Invalid']);
    for (const words of says) expect(message).toContain(words);
  });

  it('an offer whose shortest lease is longer than its longest', async () => {
    const spec = { ...minimalOffer(), minDurationSeconds: 600, maxDurationSeconds: 300 };
    const answer = await dryRun('GpuOffer', spec);
    expect(answer.json<Status>().message).toContain('minDurationSeconds must not be above maxDurationSeconds');
  });

  it('a field that is not known', async () => {
    const answer = await dryRun('GpuLease', changed(minimalLease(), 'gpus', 2));
    expect([answer.status, answer.json<Status>().message]).toEqual([
      400,
      expect.stringContaining('unknown field "spec.gpus"'),
    ]);
  });

  it('no spec at all', async () => {
    const answer = await dryRun('GpuLease', undefined);
    expect(answer.json<Status>().message).toContain('spec: Required value');
  });
});

describe('what may not change after a lease or provider was made', () => {
  const manual = () => changed(minimalLease(), 'approval', 'Manual');
  const once: Record<string, { kind: string; before: Json; after: Json; says: string | undefined }> = {
    'the GPUs': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'gpu.count', 2),
      says: 'spec.gpu is immutable: delete the lease and create another',
    },
    'the term': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'term.durationSeconds', 7200),
      says: 'spec.term is immutable: create another lease',
    },
    'the token': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'pricing.assetSymbol', 'GPU'),
      says: 'capacityType and pricing.assetSymbol are immutable: create another lease',
    },
    'the tokens that will do as well': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'pricing.alternatives', [{ assetSymbol: 'GPU', maxPricePerGpuHour: '1' }]),
      says: 'the tokens of pricing.alternatives are immutable: create another lease',
    },
    'not the limits in them': {
      kind: 'GpuLease',
      before: changed(minimalLease(), 'pricing.alternatives', [{ assetSymbol: 'GPU', maxPricePerGpuHour: '1' }]),
      after: changed(minimalLease(), 'pricing.alternatives', [
        { assetSymbol: 'GPU', maxPricePerGpuHour: '2', spendLimit: '9' },
      ]),
      says: undefined,
    },
    'the capacity type': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'capacityType', 'Spot'),
      says: 'capacityType and pricing.assetSymbol are immutable: create another lease',
    },
    'how pods ask for its GPUs': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'node.gpusAs', 'Devices'),
      says: 'node.gpusAs is immutable: create another lease',
    },
    'nothing by saying what is the default': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'node.gpusAs', 'Resource'),
      says: undefined,
    },
    'the approved quote': {
      kind: 'GpuLease',
      before: changed(manual(), 'approvedQuoteHash', `0x${'a'.repeat(64)}`),
      after: changed(manual(), 'approvedQuoteHash', `0x${'b'.repeat(64)}`),
      says: 'approvedQuoteHash can be set once',
    },
    'that a quote was approved': {
      kind: 'GpuLease',
      before: changed(manual(), 'approvedQuoteHash', `0x${'a'.repeat(64)}`),
      after: manual(),
      says: 'approvedQuoteHash can be set once',
    },
    'the provider that is paid': {
      kind: 'GpuProvider',
      before: minimalProvider(),
      after: changed(minimalProvider(), 'identity.address', '0x8617E340B3D01FA5F11F306F4090FD50E238070D'),
      says: 'identity.address is immutable: another payee is another provider',
    },
    'the token of a budget, in which its spending is counted': {
      kind: 'GpuBudget',
      before: minimalBudget(),
      after: changed(minimalBudget(), 'assetSymbol', 'GPU'),
      says: 'assetSymbol is immutable: make another GpuBudget',
    },
    'nothing else: a limit may': {
      kind: 'GpuBudget',
      before: minimalBudget(),
      after: changed(minimalBudget(), 'limits', [{ window: 'Hour', amount: '0' }]),
      says: undefined,
    },
    'nothing else: the price limit may': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'pricing.maxPricePerGpuHour', '0.70'),
      says: undefined,
    },
    'nothing else: a quote may be approved': {
      kind: 'GpuLease',
      before: manual(),
      after: changed(manual(), 'approvedQuoteHash', `0x${'a'.repeat(64)}`),
      says: undefined,
    },
    'nothing else: a lease may be suspended': {
      kind: 'GpuLease',
      before: minimalLease(),
      after: changed(minimalLease(), 'suspend', true),
      says: undefined,
    },
  };
  it.each(Object.entries(once))('%s', async (what, { kind, before, after, says }) => {
    const name = `once-${Object.keys(once).indexOf(what)}`;
    const made = await consumer.api.call<Json>('POST', pathOf(kind), objectOf(kind, before, name));
    const answer = await consumer.api.request('PUT', `${pathOf(kind)}/${name}`, {
      ...objectOf(kind, after, name),
      metadata: made.metadata,
    });
    if (kind !== 'GpuLease') await consumer.api.request('DELETE', `${pathOf(kind)}/${name}`);
    if (says === undefined) expect(answer.status, answer.text).toBe(200);
    else expect([answer.status, answer.json<Status>().message]).toEqual([422, expect.stringContaining(says)]);
  });
});

describe('the Zod schemas and the API server agree', () => {
  const good: Record<string, { kind: string; path: string; value: unknown }> = {
    'sixteen GPUs': { kind: 'GpuLease', path: 'gpu.count', value: 16 },
    'six decimals': { kind: 'GpuLease', path: 'pricing.maxPricePerGpuHour', value: '0.600001' },
    'nine digits of money': { kind: 'GpuLease', path: 'pricing.spendLimit', value: '999999999.999999' },
    'the longest term': { kind: 'GpuLease', path: 'term.durationSeconds', value: 2_592_000 },
    'a quantity as text': { kind: 'GpuLease', path: 'resources.requests', value: { cpu: '500m', memory: '16Gi' } },
    'a quantity as a number': { kind: 'GpuLease', path: 'resources.requests', value: { cpu: 4 } },
    'a requirement': {
      kind: 'GpuLease',
      path: 'requirements',
      value: [{ key: 'topology.kubernetes.io/region', operator: 'In', values: ['eu-west'] }],
    },
    'thirty-two Services of two namespaces': {
      kind: 'GpuLease',
      path: 'services',
      value: Array.from({ length: 32 }, (_, i) => ({
        name: `db-${i >> 1}`,
        ...(i % 2 ? { namespace: 'prod', ports: [5432] } : {}),
      })),
    },
    'labels for the node': { kind: 'GpuLease', path: 'node.labels', value: { team: 'ml' } },
    'a drain that waits for nobody': { kind: 'GpuLease', path: 'drainTimeoutSeconds', value: 0 },
    'a pinned key': { kind: 'GpuProvider', path: 'endpoint.spkiSHA256', value: 'a'.repeat(64) },
    'a provider that dials in': { kind: 'GpuProvider', path: 'endpoint', value: { via: 'Reverse' } },
    'a provider by relay': {
      kind: 'GpuProvider',
      path: 'endpoint',
      value: { via: 'Relay', relay: { url: 'https://relay.example.com:9444', spkiSHA256: 'b'.repeat(64) } },
    },
    'limits of nothing': { kind: 'GpuProvider', path: 'limits', value: { leases: 0, gpus: 0, spendPerHour: '0' } },
    'GPUs as the only limit of a budget': {
      kind: 'GpuBudget',
      path: 'maxConcurrentGpus',
      value: 8,
    },
    'three limits, one of nothing': {
      kind: 'GpuBudget',
      path: 'limits',
      value: [
        { window: 'Hour', amount: '0' },
        { window: 'Day', amount: '0.000001' },
        { window: 'Month', amount: '999999999.999999' },
      ],
    },
    'no alerts': { kind: 'GpuBudget', path: 'alertPercents', value: [] },
    'part of a probe': { kind: 'GpuProvider', path: 'probe', value: { intervalSeconds: 60 } },
    'two prices': {
      kind: 'GpuOffer',
      path: 'prices',
      value: [
        { assetSymbol: 'USDC', perGpuHour: '0.3' },
        { assetSymbol: 'GPU', perGpuHour: '3' },
      ],
    },
  };
  it.each(Object.entries(good))('both take %s', async (_, { kind, path, value }) => {
    const spec = changed(minimal[kind]!(), path, value);
    const { spec: schema } = kinds.find((one) => one.kind === kind)!;
    const answer = await dryRun(kind, spec);
    expect(answer.status, answer.text).toBe(201);
    expect(answer.json<{ spec: Json }>().spec).toEqual(schema.parse(spec));
  });

  it.each(Object.entries(bad).filter(([, one]) => !one.cel))('both refuse %s', (_, { kind, path, value }) => {
    const { spec: schema } = kinds.find((one) => one.kind === kind)!;
    expect(schema.safeParse(changed(minimal[kind]!(), path, value)).success).toBe(false);
  });
});

describe('with kubectl', () => {
  it('a person reads which field is wrong, what was given and what is allowed', async () => {
    const unquoted = await applied(objectOf('GpuLease', changed(minimalLease(), 'pricing.maxPricePerGpuHour', 0.6)));
    expect(unquoted.code).toBe(1);
    expect(unquoted.text).toContain('The GpuLease "tried" is invalid');
    expect(unquoted.text).toContain('spec.pricing.maxPricePerGpuHour: Invalid value: "number"');
    expect(unquoted.text).toContain('must be of type string: "number"');
  });

  it('an unknown field is named', async () => {
    const typo = await applied(objectOf('GpuLease', changed(minimalLease(), 'gpu.cuont', 2)));
    expect([typo.code, typo.text]).toEqual([1, expect.stringContaining('unknown field "spec.gpu.cuont"')]);
  });

  it('short names, categories and columns are there', async () => {
    const run = promisify(execFile);
    const get = async (...args: string[]) =>
      (await run(kubectl, [`--kubeconfig=${consumer.kubeconfigPath}`, `--namespace=${namespace.name}`, 'get', ...args]))
        .stdout;
    expect(await get('gl', 'smallest')).toMatch(
      /^NAME\s+MODELS\s+GPUS\s+READY\s+REASON\s+PROVIDER\s+RATE\/H\s+ACCRUED/,
    );
    expect(await get('gpulease')).toContain('smallest');
    expect(await get('gpr,gof')).toBeDefined();

    const path = pathOf('GpuBudget');
    await consumer.api.call('POST', path, objectOf('GpuBudget', minimalBudget(), 'team'));
    const window = (name: string, spent: string) => ({
      window: name,
      startedAt: '2026-11-26T00:00:00Z',
      resetsAt: '2026-11-27T00:00:00Z',
      spent,
      committed: '1',
    });
    const status = {
      windows: [window('Hour', '0.000000000000000001'), window('Day', '12.5'), window('Month', '300')],
      usedPercent: 7,
      gpus: 3,
      counted: [{ uid: 'a', attempt: 1, seconds: 7 }],
      conditions: [
        {
          type: 'Exceeded',
          status: 'False',
          reason: 'WithinLimits',
          message: '',
          lastTransitionTime: '2026-11-26T00:00:00Z',
        },
      ],
    };
    // As the operator writes it: with server-side apply, over the version that it read.
    const made = await consumer.api.call<{ metadata: { resourceVersion: string } }>('GET', `${path}/team`);
    const cluster = connectCluster({ name: 'consumer', kubeconfig: consumer.kubeconfigPath });
    const apply = (resourceVersion: string) =>
      cluster.apply(resources.gpuBudgets, { metadata: { name: 'team', resourceVersion }, status } as never, {
        fieldManager: 'gpulease-budget',
        subresource: 'status',
      });
    await apply(made.metadata.resourceVersion);
    await expect(apply(made.metadata.resourceVersion)).rejects.toMatchObject({ code: 409 });
    expect(await get('gbg')).toMatch(
      /^NAME\s+ASSET\s+HOUR\s+DAY\s+MONTH\s+USED%\s+GPUS\s+EXCEEDED\s+AGE\nteam\s+USDC\s+0.000000000000000001\s+12.5\s+300\s+7\s+3\s+False/,
    );
    await consumer.api.request('DELETE', `${path}/team`);
  });
});
