/**
 * The gateway's protocol as an OpenAPI 3.1 document, from the schemas by which both sides validate. Served at
 * /v1/openapi.json and written to operator/reference by `npm run generate`.
 *
 * What is a Kubernetes object is called an object here and no more: Kubernetes describes them, and the gateway's admission
 * decides what of them tenants may have.
 */
import { z } from 'zod';
import {
  accessRequest,
  accessToken,
  allocationInfo,
  batchedAnswer,
  batchRequest,
  batchType,
  forwardProtocol,
  gatewayReasons,
  leaseRequest,
  maxBodyBytes,
  offerList,
  problem,
  providerInfo,
  quoteRequest,
  releaseReceipt,
  reverseProtocol,
  servicesAnswer,
  servicesRequest,
  signedQuote,
  voucherReceipt,
  voucherRequest,
} from './gateway.ts';

const schemas = {
  AccessRequest: accessRequest,
  AccessToken: accessToken,
  AllocationInfo: allocationInfo,
  BatchedAnswer: batchedAnswer,
  BatchRequest: batchRequest,
  OfferList: offerList,
  Problem: problem,
  ProviderInfo: providerInfo,
  QuoteRequest: quoteRequest,
  LeaseRequest: leaseRequest,
  ReleaseReceipt: releaseReceipt,
  ServicesAnswer: servicesAnswer,
  ServicesRequest: servicesRequest,
  SignedQuote: signedQuote,
  VoucherReceipt: voucherReceipt,
  VoucherRequest: voucherRequest,
} as const;
type SchemaName = keyof typeof schemas;

type Json = Record<string, unknown>;
type Method = 'get' | 'post' | 'put' | 'delete';

interface Answer {
  readonly what: string;
  readonly schema?: SchemaName | 'Object' | 'Document';
  /** Default: application/json, where there is a schema. */
  readonly type?: string;
}

interface Operation {
  readonly id: string;
  readonly summary: string;
  /** Absent: a bearer token of the lease. */
  readonly open?: true;
  readonly body?: SchemaName | 'Object';
  readonly query?: Readonly<Record<string, Json>>;
  readonly answers: Readonly<Record<string, Answer>>;
}

const flag: Json = { type: 'string', enum: ['true', 'false', '1', '0'] };
const number: Json = { type: 'string', pattern: '^\\d{1,10}$' };
const word = (maxLength: number): Json => ({ type: 'string', maxLength });
const container: Json = { type: 'string', pattern: '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$' };
const ports: Json = { type: 'string', pattern: '^\\d{1,5}(,\\d{1,5})*$' };

const listQuery = {
  watch: flag,
  allowWatchBookmarks: flag,
  sendInitialEvents: flag,
  resourceVersion: word(64),
  resourceVersionMatch: { type: 'string', enum: ['Exact', 'NotOlderThan'] },
  timeoutSeconds: number,
  limit: number,
  continue: word(4096),
  labelSelector: word(512),
  fieldSelector: word(512),
};
const objectQuery = { resourceVersion: word(64) };
const deleteQuery = { gracePeriodSeconds: number, uid: word(64), resourceVersion: word(64) };
const logQuery = {
  container,
  follow: flag,
  previous: flag,
  timestamps: flag,
  tailLines: number,
  sinceSeconds: number,
  sinceTime: word(40),
  limitBytes: number,
  stream: { type: 'string', enum: ['All', 'Stdout', 'Stderr'] },
};
const attachQuery = { container, stdin: flag, stdout: flag, stderr: flag, tty: flag };
const execQuery = { ...attachQuery, command: word(131_072) };
const portQuery = { ports, port: ports };

const json = (what: string, schema: Answer['schema']): Answer => ({ what, schema });
const object = json('The object, as the provider’s Kubernetes has it.', 'Object');
const briefly = json(
  'The object, as the provider’s Kubernetes has it; its metadata alone, where a PartialObjectMetadata is accepted.',
  'Object',
);
const switching = (protocol: string): Answer => ({ what: `The connection speaks ${protocol} from here on.` });

function objects(kind: string, one: string, changeable: boolean): Record<string, Partial<Record<Method, Operation>>> {
  const put: Operation = {
    id: `replace${one}`,
    summary: `The whole ${one} anew; it is admitted anew.`,
    body: 'Object',
    answers: { 200: object },
  };
  return {
    [`kube/${kind}`]: {
      get: {
        id: `list${one}s`,
        summary: `The tenant's ${kind}; with watch=true their changes, one JSON document a line, also over HTTP/2.`,
        query: listQuery,
        answers: { 200: json('A list, or changes.', 'Object') },
      },
      post: { id: `create${one}`, summary: `Makes a ${one}.`, body: 'Object', answers: { 201: briefly } },
    },
    [`kube/${kind}/{name}`]: {
      get: { id: `get${one}`, summary: `One ${one}.`, query: objectQuery, answers: { 200: object } },
      ...(changeable ? { put } : {}),
      delete: {
        id: `delete${one}`,
        summary: `Deletes the ${one}.`,
        query: deleteQuery,
        answers: { 200: briefly, 202: briefly },
      },
    },
  };
}

function stream(name: string, query: Readonly<Record<string, Json>>): Partial<Record<Method, Operation>> {
  const operation = (method: Method): Operation => ({
    id: `${name}Pod${method === 'get' ? '' : 'ByPost'}`,
    summary: `${name} of a pod, by an upgrade to SPDY/3.1 or WebSocket that is carried through unread.`,
    query,
    answers: { 101: switching('the protocol that was agreed on') },
  });
  return { get: operation('get'), post: operation('post') };
}

const page = (id: string, what: string, type?: string): Partial<Record<Method, Operation>> => ({
  get: {
    id,
    summary: what,
    answers: { 200: { what, schema: 'Document', ...(type === undefined ? {} : { type }) } },
  },
});
const plain = 'text/plain';

const lease: Record<string, Partial<Record<Method, Operation>>> = {
  '': {
    get: {
      id: 'getAllocation',
      summary:
        'The allocation. Where text/event-stream is accepted it is followed: an event for each change with the allocation as data, and a comment every five seconds that it is as it was.',
      answers: { 200: json('As it is now.', 'AllocationInfo') },
    },
  },
  token: {
    post: {
      id: 'createToken',
      summary: 'A bearer token for this lease, minutes long, for an Access signed by the session key of its escrow.',
      open: true,
      body: 'AccessRequest',
      answers: { 200: json('The token.', 'AccessToken') },
    },
  },
  vouchers: {
    post: {
      id: 'putVoucher',
      summary: 'A signed count of served seconds. It is stored before it is acknowledged, and only ever grows.',
      body: 'VoucherRequest',
      answers: { 200: json('The highest that is stored.', 'VoucherReceipt') },
    },
  },
  release: {
    post: {
      id: 'release',
      summary: 'Serve no longer. To be repeated until it has ended.',
      answers: {
        200: json('Nothing of the tenant runs; the signed release.', 'ReleaseReceipt'),
        202: json('The tenant is being ended.', 'ReleaseReceipt'),
      },
    },
  },
  services: {
    put: {
      id: 'putServices',
      summary: 'The consumer’s Services that pods of the lease may reach: all of them, each time.',
      body: 'ServicesRequest',
      answers: { 200: json('An address for each.', 'ServicesAnswer') },
    },
  },
  forward: {
    post: {
      id: 'forward',
      summary: `Connections to the tenant's pods: HTTP/2 in an upgrade to ${forwardProtocol}, one CONNECT to POD:PORT each.`,
      answers: { 101: switching(forwardProtocol) },
    },
  },
  reverse: {
    post: {
      id: 'reverse',
      summary: `Connections from the tenant's pods: HTTP/2 with the roles turned round, in an upgrade to ${reverseProtocol}.`,
      answers: { 101: switching(reverseProtocol) },
    },
  },
  batch: {
    post: {
      id: 'batch',
      summary:
        'Several writes at once, each counted, admitted and answered as it would be alone, in no order. A line of JSON for each as soon as it is known; a call without one was cut off.',
      body: 'BatchRequest',
      answers: { 200: { what: 'An answer a line.', schema: 'BatchedAnswer', type: batchType } },
    },
  },
  ...objects('pods', 'Pod', true),
  ...objects('configmaps', 'ConfigMap', true),
  ...objects('secrets', 'Secret', true),
  ...objects('persistentvolumeclaims', 'PersistentVolumeClaim', false),
  'kube/pods/{name}/log': {
    get: {
      id: 'logOfPod',
      summary: 'The log of a container.',
      query: logQuery,
      answers: { 200: { what: 'As it was written.', schema: 'Document', type: plain } },
    },
  },
  'kube/pods/{name}/exec': stream('exec', execQuery),
  'kube/pods/{name}/attach': stream('attach', attachQuery),
  'kube/pods/{name}/portforward': stream('portforward', portQuery),
  'kube/events': {
    get: {
      id: 'listEvents',
      summary: 'Events of the tenant; watch=true as elsewhere.',
      query: listQuery,
      answers: { 200: json('A list, or changes.', 'Object') },
    },
  },
  'kube/node': {
    get: {
      id: 'getNode',
      summary: 'The real node’s status, reduced to this lease.',
      answers: { 200: json('A Node.', 'Object') },
    },
  },
  'kube/node/stats': page(
    'getStats',
    'What the node’s kubelet measured of the tenant’s pods: its /stats/summary.',
    'application/json',
  ),
  'kube/node/metrics/resource': page('getResourceMetrics', 'Likewise, its /metrics/resource.', plain),
  'kube/node/metrics/cadvisor': page('getCadvisorMetrics', 'Likewise, its /metrics/cadvisor.', plain),
  'kube/node/metrics/probes': page('getProbeMetrics', 'Likewise, its /metrics/probes.', plain),
};

const paths: Record<string, Partial<Record<Method, Operation>>> = {
  '/v1/openapi.json': {
    get: {
      id: 'getOpenApi',
      summary: 'This document.',
      open: true,
      answers: { 200: json('OpenAPI 3.1.', 'Object') },
    },
  },
  '/v1/provider': {
    get: {
      id: 'getProvider',
      summary: 'Who the provider is, and how it may be paid.',
      open: true,
      answers: { 200: json('The provider.', 'ProviderInfo') },
    },
  },
  '/v1/offers': {
    get: {
      id: 'listOffers',
      summary: 'What it rents out now.',
      open: true,
      answers: { 200: json('All offers.', 'OfferList') },
    },
  },
  '/v1/quotes': {
    post: {
      id: 'createQuote',
      summary: 'A signed quote, bound to one consumer and one lease. Nothing is set aside by it.',
      open: true,
      body: 'QuoteRequest',
      answers: { 200: json('The quote.', 'SignedQuote') },
    },
  },
  '/v1/leases': {
    post: {
      id: 'createAllocation',
      summary: 'The escrow of this quote is on chain: make the node. May be repeated.',
      open: true,
      body: 'LeaseRequest',
      answers: { 200: json('The allocation.', 'AllocationInfo') },
    },
  },
  ...Object.fromEntries(
    Object.entries(lease).map(([path, operations]) => [
      `/v1/leases/{leaseId}${path === '' ? '' : `/${path}`}`,
      operations,
    ]),
  ),
};

const ref = (name: string): Json => ({ $ref: `#/components/schemas/${name}` });

function operationOf(path: string, { id, summary, open, body, query = {}, answers }: Operation): Json {
  const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
    ...{ name, in: 'path', required: true },
    schema:
      name === 'leaseId'
        ? { type: 'string', pattern: '^0x[0-9a-fA-F]{64}$' }
        : { type: 'string', maxLength: 253, pattern: '^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$' },
  }));
  const inQuery = Object.entries(query).map(([name, schema]) => ({
    ...{ name, in: 'query' },
    // Each argument of a command is one.
    ...(name === 'command' ? { explode: true, schema: { type: 'array', items: schema } } : { schema }),
  }));
  const responses = Object.entries(answers).map(([status, { what, schema, type = 'application/json' }]) => [
    status,
    { description: what, ...(schema === undefined ? {} : { content: { [type]: { schema: ref(schema) } } }) },
  ]);
  return {
    operationId: id,
    summary,
    ...(open ? { security: [] } : {}),
    ...(inPath.length + inQuery.length === 0 ? {} : { parameters: [...inPath, ...inQuery] }),
    ...(body === undefined
      ? {}
      : { requestBody: { required: true, content: { 'application/json': { schema: ref(body) } } } }),
    responses: {
      ...Object.fromEntries(responses),
      default: {
        description: 'A no, or a fault. `reason` is one of those below where a program can act on it.',
        content: { 'application/problem+json': { schema: ref('Problem') } },
      },
    },
  };
}

/** The whole document, as data. */
export function openApi(version: string): Json {
  const described = Object.entries(schemas).map(([name, schema]) => {
    const { $schema: _, ...rest } = z.toJSONSchema(schema, { target: 'draft-2020-12', io: 'input' }) as Json;
    return [name, rest];
  });
  const reasons = Object.entries(gatewayReasons).map(([reason, meaning]) => `- \`${reason}\`: ${meaning}`);
  return {
    openapi: '3.1.0',
    info: {
      title: 'gpulease gateway',
      version,
      summary: 'Rents out the GPUs of a provider’s cluster.',
      description: [
        'A consumer asks for a quote, opens its escrow on chain, asks for the allocation, and reaches its pods by a token that it gets for an Access signature. Numbers of base units travel as decimal strings.',
        `Bodies are JSON of at most ${maxBodyBytes} bytes. Errors are problem documents (RFC 9457). 429 and 503 come with Retry-After, in seconds.`,
        `Reasons:\n\n${reasons.join('\n')}`,
      ].join('\n\n'),
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/' }],
    security: [{ leaseToken: [] }],
    paths: Object.fromEntries(
      Object.entries(paths).map(([path, operations]) => [
        path,
        Object.fromEntries(Object.entries(operations).map(([method, one]) => [method, operationOf(path, one!)])),
      ]),
    ),
    components: {
      securitySchemes: {
        leaseToken: {
          type: 'http',
          scheme: 'bearer',
          description: 'From POST /v1/leases/{leaseId}/token; good for that lease alone.',
        },
      },
      schemas: {
        ...Object.fromEntries(described),
        Object: { type: 'object', description: 'A Kubernetes object, list or change.' },
        Document: { description: 'As the provider’s Kubernetes writes it.' },
      },
    },
  };
}
