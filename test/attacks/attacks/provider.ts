/**
 * A provider that lies to its consumer: about who it is, what it has, what it asks, and, once it is paid, about the node and the
 * pods. Told through a lying front before the real gateway (`liar.ts`), to the real operator; what is looked at is what the
 * consumer's cluster shows, and whether money moved.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { keyFromHex } from '../../../operator/adapters/chain/key.ts';
import { quoteFromJson, quoteToJson, signQuote } from '../../../operator/adapters/chain/messages.ts';
import type { SignedQuote } from '../../../operator/api/gateway.ts';
import type { GpuLease } from '../../../operator/api/lease.ts';
import type { Quote } from '../../../operator/api/messages.ts';
import { type Attack, GotThrough, must } from '../attack.ts';
import type { Lie } from '../liar.ts';
import type { Deceived, Target } from '../target.ts';

type Json = Record<string, unknown>;

const deceivedOf = ({ deceived }: Target): Deceived => {
  if (!deceived) throw new Error('there is no consumer to deceive');
  return deceived;
};

const attack = (name: string, expected: string, run: (at: Deceived, target: Target) => Promise<string>): Attack => ({
  who: 'provider',
  name,
  expected,
  needs: 'clusters',
  run: (target) => run(deceivedOf(target), target),
});

async function eventually(look: () => Promise<string | undefined>, what: string, seconds = 45): Promise<string> {
  for (const until = Date.now() + seconds * 1000; ; ) {
    const seen = await look();
    if (seen !== undefined) return seen;
    if (Date.now() > until) throw new GotThrough(`${what}: not within ${seconds} s`);
    await sleep(250);
  }
}

/** Escape sequences, as a terminal would follow them. */
const escapes = '\u001b]0;root\u0007\u001b[2J\u001b[31mall is well\r';
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const steering = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/;
const giant = 'x'.repeat(200_000);

/** The GpuProvider says that it is not to be used, for this reason. */
const distrusted = (name: string, lie: Lie, reasons: RegExp): Attack =>
  attack(name, `the provider is not Ready: ${reasons.source}`, async (at) => {
    at.liar.tell(lie);
    try {
      return await eventually(async () => {
        const { conditions = [] } = (await at.provider()).status ?? {};
        const bad = conditions.find(({ type, status }) => type === 'Ready' && status === 'False');
        must(
          !steering.test(JSON.stringify(conditions.map(({ message }) => message)).replace(/\\n/g, '')),
          'it steers terminals',
        );
        return bad && reasons.test(bad.reason) ? `${bad.reason}: ${bad.message}`.slice(0, 110) : undefined;
      }, 'the provider is believed');
    } finally {
      at.liar.tell();
      await at.recovered();
    }
  });

const identity: readonly Attack[] = [
  distrusted(
    'it is somebody else: another address than was written down',
    { about: /GET \/v1\/provider/, change: (body) => ({ ...body, address: `0x${'12'.repeat(20)}` }) },
    /Identity/,
  ),
  distrusted(
    'its clock is an hour ahead',
    {
      about: /GET \/v1\/provider/,
      change: (body) => ({ ...body, now: new Date(Date.now() + 3_600_000).toISOString() }),
    },
    /Clock/,
  ),
  distrusted(
    'it is paid by a contract of its own',
    {
      about: /GET \/v1\/provider/,
      change: (body) => ({
        ...body,
        rails: (body.rails as Json[]).map((rail) => ({ ...rail, escrow: `0x${'ab'.repeat(20)}` })),
      }),
    },
    /Rail|Chain/,
  ),
  distrusted(
    'it answers with fifty megabytes',
    {
      about: /GET \/v1\/(provider|offers)/,
      answer: (_request, response) => {
        response.on('error', () => undefined);
        response.writeHead(200, { 'content-type': 'application/json' });
        response.end(Buffer.alloc(50_000_000, 0x20));
      },
    },
    /Invalid|Unreachable/,
  ),
  distrusted(
    'it sends its caller on, to the cloud’s metadata',
    {
      about: /GET \/v1\//,
      answer: (_request, response) => {
        response.writeHead(302, { location: 'http://169.254.169.254/latest/meta-data' }).end();
      },
    },
    /Invalid|Unreachable/,
  ),
  distrusted(
    'it refuses, in words that clear the screen',
    {
      about: /GET \/v1\//,
      answer: (_request, response) => {
        response.writeHead(403, { 'content-type': 'application/problem+json' }).end(
          JSON.stringify({
            type: 'about:blank',
            title: escapes,
            status: 403,
            detail: `${escapes}${giant}`.slice(0, 2000),
          }),
        );
      },
    },
    /Invalid|Unreachable/,
  ),
  distrusted(
    'it offers five hundred things',
    {
      about: /GET \/v1\/offers/,
      change: (body) => ({
        ...body,
        offers: Array.from({ length: 500 }, (_, i) => ({ ...(body.offers as Json[])[0], name: `o-${i}` })),
      }),
    },
    /Invalid/,
  ),
  distrusted(
    'it offers GPUs at a price below nothing',
    {
      about: /GET \/v1\/offers/,
      change: (body) => ({
        ...body,
        offers: (body.offers as Json[]).map((one) => ({ ...one, prices: [{ assetSymbol: 'USDC', perGpuHour: '-1' }] })),
      }),
    },
    /Invalid/,
  ),
];

const mirrored: readonly Attack[] = [
  attack(
    'it offers under the names of others, and under names that are none',
    'confined to its own offers',
    async (at) => {
      const before = await at.offers();
      const names = ['../../sandbox', 'sandbox-rtx4090', escapes.slice(0, 40), 'A'.repeat(63)];
      at.liar.tell({
        about: /GET \/v1\/offers/,
        change: (body) => ({
          ...body,
          offers: names.map((name) => ({ ...(body.offers as Json[])[0], name, region: escapes.slice(0, 40) })),
        }),
      });
      await sleep(6000);
      const after = await at.offers();
      at.liar.tell();
      await at.recovered();
      const others = (all: typeof before) =>
        JSON.stringify(
          all.filter(({ spec }) => spec.providerName !== 'liar').map(({ metadata, spec }) => [metadata.name, spec]),
        );
      must(others(after) === others(before), 'an offer of another provider has changed');
      const own = after.filter(({ spec }) => spec.providerName === 'liar');
      for (const { metadata } of own) must(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/.test(metadata.name), metadata.name);
      must(!steering.test(JSON.stringify(own).replace(/\\n/g, '')), 'it steers terminals');
      return `${own.length} offers, all its own`;
    },
  ),
];

/** A quote that is signed rightly, but says something else than was asked. */
const quoting = (
  name: string,
  change: (quote: Quote, signed: SignedQuote) => Partial<Quote>,
  signer?: `0x${string}`,
): Attack =>
  attack(`a quote ${name}`, 'no escrow is opened', async (at, target) => {
    const before = await at.escrows();
    at.liar.tell({
      about: /POST \/v1\/quotes/,
      change: async (body) => {
        const signed = body as unknown as SignedQuote;
        const quote = quoteFromJson(signed.quote as never);
        return { ...signed, ...(await at.forge({ ...quote, ...change(quote, signed) }, signer)) };
      },
    });
    const lease = await at.wish();
    try {
      const message = await eventually(async () => {
        must((await at.escrows()) === before, 'an escrow was opened');
        const said = saidOf(await at.lease(lease));
        return at.liar.told > 0 && /No quote was good/.test(said) ? said : undefined;
      }, 'the quote is neither taken nor refused');
      // A moment longer: what is on its way would be seen by now.
      await sleep(2000);
      must((await at.escrows()) === before, 'an escrow was opened');
      must(target.real !== undefined, '');
      return message.slice(0, 110);
    } finally {
      at.liar.tell();
      await at.forget(lease);
    }
  });

const saidOf = (lease: GpuLease | undefined): string =>
  (lease?.status?.conditions ?? []).map(({ message }) => message).find((message) => /quote/i.test(message ?? '')) ?? '';

const quotes: readonly Attack[] = [
  quoting('at ten times the price', (quote) => ({ pricePerGpuHour: quote.pricePerGpuHour * 10n })),
  quoting('for half of the GPUs', () => ({ gpus: 0 })),
  quoting('for more GPUs, to be paid for', (quote) => ({ gpus: quote.gpus + 1 })),
  quoting('made out to another consumer', () => ({ consumer: `0x${'12'.repeat(20)}` })),
  quoting('of another lease', () => ({ leaseRef: `0x${'34'.repeat(32)}` })),
  quoting('in another token', () => ({ token: `0x${'56'.repeat(20)}` })),
  quoting('for a shorter term', (quote) => ({ maxSeconds: Math.floor(quote.maxSeconds / 2) })),
  quoting('whose start may take for ever', () => ({ startTimeoutSeconds: 0xffffffff })),
  quoting('that ran out yesterday', () => ({ expiresAt: Math.floor(Date.now() / 1000) - 86_400 })),
  quoting('for a node that was not promised', () => ({ specHash: `0x${'9a'.repeat(32)}` })),
  quoting('signed by somebody else', () => ({}), `0x${'42'.repeat(32)}`),
];

/** What it says once a lease is paid for: `name` of the pod at the consumer, told by the liar. */
const serving = (
  name: string,
  expected: string,
  lies: readonly Lie[],
  wrong: (at: Deceived) => Promise<string | undefined>,
  seconds = 6,
): Attack =>
  attack(name, expected, async (at) => {
    await at.served();
    at.liar.tell(...lies);
    try {
      for (const until = Date.now() + seconds * 1000; Date.now() < until; await sleep(500)) {
        const why = await wrong(at);
        must(why === undefined, why ?? '');
      }
      must(at.liar.told > 0, 'nobody listened to the lie');
      return `told ${at.liar.told} times, nothing of it is seen`;
    } finally {
      at.liar.tell();
    }
  });

const allocation = /GET \/v1\/leases\/0x[0-9a-f]+$/;
const podsList = /GET \/v1\/leases\/0x[0-9a-f]+\/kube\/pods\?(?!.*watch=true)/;
const podsWatch = /GET \/v1\/leases\/0x[0-9a-f]+\/kube\/pods\?.*watch=true/;
const onePod = /GET \/v1\/leases\/0x[0-9a-f]+\/kube\/pods\/[^/?]+(\?|$)/;
const eventsWatch = /GET \/v1\/leases\/0x[0-9a-f]+\/kube\/events\?.*watch=true/;
const eventsList = /GET \/v1\/leases\/0x[0-9a-f]+\/kube\/events\?(?!.*watch=true)/;
const node = /GET \/v1\/leases\/0x[0-9a-f]+\/kube\/node$/;

type PodObject = { status?: Json; metadata: Json };
const inPods = (change: (pod: PodObject) => PodObject): Lie[] => [
  {
    about: podsList,
    change: (body) => ({ ...body, items: ((body.items as PodObject[] | undefined) ?? []).map(change) }),
  },
  { about: podsWatch, lines: (event) => [{ ...event, object: change(event.object as unknown as PodObject) }] },
  { about: onePod, change: (body) => change(body as unknown as PodObject) },
];

const nodeIsPlain = async (at: Deceived): Promise<string | undefined> => {
  const seen = await at.node();
  if (seen === undefined) return undefined;
  const gpus = (seen.status?.allocatable as Json | undefined)?.['nvidia.com/gpu'];
  if (gpus !== undefined && gpus !== '1') return `${String(gpus)} GPUs`;
  const labels = Object.keys(seen.metadata.labels ?? {});
  const foreign = labels.find((label) => /node-role|evil|dedicated/.test(label));
  if (foreign) return `the label ${foreign}`;
  const text = JSON.stringify(seen);
  if (steering.test(text) || /\\u00(0[0-8b-f]|1[0-9a-f]|7f)/.test(text)) return 'it steers terminals';
  return text.length > 100_000 ? `the Node has ${text.length} bytes` : undefined;
};
const podIsPlain = async (at: Deceived): Promise<string | undefined> => {
  const seen = await at.pod();
  const text = JSON.stringify(seen?.status ?? {});
  if (/\\u00(0[0-8b-f]|1[0-9a-f]|7f)/.test(text) || /\\r/.test(text)) return 'it steers terminals';
  if (text.length > 40_000) return `the status has ${text.length} bytes`;
  const { podIP, hostIP } = (seen?.status ?? {}) as { podIP?: string; hostIP?: string };
  return podIP === '10.96.0.1' || hostIP === '169.254.169.254' ? `${podIP} ${hostIP}` : undefined;
};

const lies: readonly Attack[] = [
  serving(
    'the allocation has 64 GPUs and a terabyte, and labels that attract pods',
    'the Node has what was leased',
    [
      {
        about: allocation,
        change: (body) => ({
          ...body,
          gpus: 64,
          resources: { cpu: '1000', memory: '1Ti', ephemeralStorage: '1Pi' },
          nodeLabels: {
            ...(body.nodeLabels as Json),
            'node-role.kubernetes.io/control-plane': '',
            'evil.example/dedicated': 'payments',
          },
          nodeInfo: { kubeletVersion: escapes, osImage: 'x'.repeat(256) },
          nodeMessage: escapes,
        }),
      },
    ],
    nodeIsPlain,
  ),
  serving(
    'the node reports as a control plane, at length, in escape sequences',
    'the Node has what was leased',
    [
      {
        about: node,
        change: (body) => ({
          ...body,
          metadata: { ...(body.metadata as Json), labels: { 'node-role.kubernetes.io/control-plane': '' } },
          status: {
            ...(body.status as Json),
            allocatable: { 'nvidia.com/gpu': '64' },
            conditions: [{ type: 'Ready', status: 'True', reason: escapes, message: `${escapes}${giant}` }],
          },
        }),
      },
      { about: allocation, change: (body) => ({ ...body, nodeMessage: escapes }) },
    ],
    nodeIsPlain,
  ),
  serving(
    'a pod’s status is two hundred kilobytes of escape sequences',
    'bounded, and plain',
    inPods((pod) => ({
      ...pod,
      metadata: { ...pod.metadata, resourceVersion: String(Date.now()) },
      status: {
        ...pod.status,
        message: `${escapes}${giant}`,
        reason: escapes,
        conditions: [{ type: 'Ready', status: 'False', reason: 'x', message: `${escapes}${giant}` }],
      },
    })),
    podIsPlain,
  ),
  serving(
    'a pod has the address of the cluster’s DNS, its host that of the metadata',
    'no address is taken over',
    inPods((pod) => ({
      ...pod,
      status: { ...pod.status, podIP: '10.96.0.1', podIPs: [{ ip: '10.96.0.1' }], hostIP: '169.254.169.254' },
    })),
    podIsPlain,
  ),
  serving(
    'there are pods that nobody sent, in the name of kube-system',
    'none is made or changed',
    [
      {
        about: podsList,
        change: (body) => ({
          ...body,
          items: [
            ...((body.items as object[] | undefined) ?? []),
            {
              metadata: {
                ...{ name: 'coredns', namespace: 'kube-system', uid: 'u', resourceVersion: '1' },
                annotations: { 'gpulease.dev/pod-namespace': 'kube-system', 'gpulease.dev/pod-name': 'coredns' },
              },
              spec: { containers: [] },
              status: { phase: 'Failed' },
            },
          ],
        }),
      },
    ],
    async (at) => {
      const count = await at.foreignPods();
      return count === 0 ? undefined : `${count} pods in kube-system`;
    },
    8,
  ),
  serving(
    'ten thousand events, in escape sequences, about other people’s objects',
    'few, plain, about its own pods',
    [
      { about: eventsList, change: (body) => ({ ...body, items: flood() }) },
      { about: eventsWatch, lines: (event) => [event, ...flood().map((object) => ({ type: 'ADDED', object }))] },
    ],
    async (at) => {
      const events = await at.events();
      const foreign = events.find(({ involvedObject }) => involvedObject.name === 'coredns');
      if (foreign) return `an event about ${foreign.involvedObject.name}`;
      if (events.length > 300) return `${events.length} events`;
      return events.some(({ message = '' }) => steering.test(message.replaceAll('\n', '')))
        ? 'it steers terminals'
        : undefined;
    },
    8,
  ),
  serving(
    'a watch is a megabyte of nonsense without an end of line',
    'the node goes on',
    [{ about: podsWatch, lines: () => ['{'.repeat(1_000_000)] }],
    nodeIsPlain,
  ),
];

const flood = (): Json[] =>
  Array.from({ length: 10_000 }, (_, i) => ({
    metadata: { name: `e-${i}`, namespace: 'x', uid: `u-${i}`, resourceVersion: String(i + 1) },
    involvedObject: { kind: 'Pod', namespace: 'kube-system', name: 'coredns' },
    ...{ type: 'Warning', reason: escapes, message: `${escapes}${i}`, count: 1 },
    lastTimestamp: new Date().toISOString(),
  }));

export const provider: readonly Attack[] = [...identity, ...mirrored, ...quotes, ...lies];

/** Signed by the provider's own key, as a provider that lies can. */
export const forgery =
  (providerKey: `0x${string}`, domain: Target['domain']) =>
  (quote: Quote, signer: `0x${string}` = providerKey): Promise<{ quote: object; signature: string }> =>
    signQuote(keyFromHex(signer), domain, quote).then(({ signature }) => ({ quote: quoteToJson(quote), signature }));
