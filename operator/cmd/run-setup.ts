/**
 * What a provider's chart cannot do by manifests: write the price list as GpuOffers (Helm refuses objects of a kind that the
 * same chart brings), and tell what consumers need, which only the running gateway knows.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { dump } from 'js-yaml';
import { spkiSha256 } from '../adapters/gateway/certificate.ts';
import { dialTls } from '../adapters/provider/dial.ts';
import { createHttpClient } from '../adapters/provider/http.ts';
import { offerList, type ProviderInfo, providerInfo } from '../api/gateway.ts';
import { apiVersion, labels, managedBy } from '../api/labels.ts';
import { exampleMaxEscrow, providerManifest } from '../core/offer/for-consumers.ts';
import { connectCluster } from '../engine/cluster.ts';
import { isNotFound } from '../engine/errors.ts';
import { readBody } from '../engine/http.ts';
import { type Cluster, type KubeObject, resources } from '../engine/types.ts';
import { choice, integer, parseOptions, text, UsageError } from './options.ts';

const usage = `
Writes the price list of a provider as GpuOffers, and a ConfigMap with what consumers need to lease there.

  setup --release NAME --offers FILE --gateway URL [--public-url URL] [options]
`;

export const setupOptions = {
  kubeconfig: text(
    'Kubeconfig of the provider\'s cluster; "in-cluster" for a pod\'s own service account.',
    'FILE',
    'in-cluster',
  ),
  namespace: text('Where the gateway runs.', 'NAME', 'gpulease-system'),
  release: text('Whose price list it is: offers of an earlier list under this name are removed.', 'NAME', 'provider'),
  offers: text('The price list: JSON, the spec of each GpuOffer by its name.', 'FILE'),
  gateway: text('URL of the gateway inside the cluster.', 'URL'),
  publicUrl: text('URL by which consumers reach it. Default: none can, and it dials out.', 'URL'),
  providerName: text('Name that the GpuProvider of consumers gets.', 'NAME', 'provider'),
  tls: choice('Where its certificate comes from.', ['SelfSigned', 'Secret', 'CertManager'], 'SelfSigned'),
  tlsSecret: text('Secret with the certificate.', 'NAME', 'gpulease-gateway-tls'),
  waitSeconds: integer('How long is waited for the gateway.', 'SECONDS', 0, 3600, 60),
};
type Options = NonNullable<ReturnType<typeof parseOptions<typeof setupOptions>>>;

const fieldManager = 'gpulease-setup';
export const forConsumers = 'gpulease-for-consumers';
const mostBytes = 1 << 20;
const byLinks = `# Its gateway dials out. via: Reverse is for a consumer whose own operator it dials; where both dial a relay, write
#   endpoint: { via: Relay, relay: { url: https://RELAY, spkiSHA256: as the relay logs it } }
`;

export async function runSetup(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  {
    say,
    connect = (kubeconfig: string) => connectCluster({ name: 'provider', kubeconfig }),
  }: { say: (line: string) => void; connect?: (kubeconfig: string) => Cluster },
  signal: AbortSignal,
): Promise<void> {
  const options = parseOptions(usage, setupOptions, args, env);
  if (!options) return;
  for (const [flag, value] of Object.entries({ offers: options.offers, gateway: options.gateway }))
    if (!value) throw new UsageError(`--${flag} is missing`);
  const cluster = connect(options.kubeconfig);
  const served = performance.now() + 30_000;
  for (;;) {
    try {
      await writeOffers(cluster, options, say, signal);
      break;
    } catch (error) {
      // A kind that was installed a moment ago is served a moment later.
      if (!isNotFound(error) || performance.now() > served) throw error;
      await sleep(1000, undefined, { signal });
    }
  }
  const told = await tell(cluster, options, say, signal);
  await cluster.apply<KubeObject & { data: Record<string, string> }>(
    resources.configMaps,
    {
      apiVersion: 'v1',
      kind: 'ConfigMap',
      metadata: { name: forConsumers, namespace: options.namespace, labels: { [labels.managedBy]: managedBy } },
      data: told,
    },
    { fieldManager },
    signal,
  );
  say(`written: ConfigMap ${options.namespace}/${forConsumers}`);
}

async function writeOffers(
  cluster: Cluster,
  options: Options,
  say: (line: string) => void,
  signal: AbortSignal,
): Promise<void> {
  const { release } = options;
  let list: Record<string, object>;
  try {
    list = JSON.parse(readFileSync(options.offers!, 'utf8')) as Record<string, object>;
  } catch (error) {
    throw new UsageError(`--offers: ${options.offers} cannot be read: ${(error as Error).message}`);
  }
  for (const [name, spec] of Object.entries(list)) {
    const offer = { apiVersion, kind: 'GpuOffer', metadata: { name, labels: { [labels.priceList]: release } }, spec };
    const present = await cluster.get(resources.gpuOffers, { name }, signal);
    // Somebody's own offer of that name is not taken from them.
    if (present && present.metadata.labels?.[labels.priceList] !== release)
      throw new Error(
        `GpuOffer ${name} is there and not of this price list: name it otherwise in the values, or delete it`,
      );
    await cluster.apply<KubeObject>(resources.gpuOffers, offer, { fieldManager }, signal);
    say(`offer ${name}`);
  }
  const labelSelector = `${labels.priceList}=${release}`;
  for (const { metadata } of (await cluster.list(resources.gpuOffers, { labelSelector }, signal)).items) {
    if (Object.hasOwn(list, metadata.name)) continue;
    await cluster.delete(resources.gpuOffers, { name: metadata.name }, { uid: metadata.uid }, signal);
    say(`offer ${metadata.name} is no longer in the list: removed`);
  }
}

/** Data of the ConfigMap: also when the gateway does not answer, for then it says so. */
async function tell(
  cluster: Cluster,
  options: Options,
  say: (line: string) => void,
  signal: AbortSignal,
): Promise<Record<string, string>> {
  const until = performance.now() + options.waitSeconds * 1000;
  let trouble = '';
  for (;;) {
    try {
      const { info, offers, identity } = await askGateway(cluster, options, signal);
      say(`the gateway answers as ${info.address}${identity.spkiSHA256 ? `, key ${identity.spkiSHA256}` : ''}`);
      const manifest = providerManifest(info, { name: options.providerName, url: options.publicUrl, ...identity });
      const hint = `# Paste into a consumer's cluster. maxEscrow is the most that it lets be locked here: ${exampleMaxEscrow} is an example.\n${options.publicUrl === undefined ? byLinks : ''}`;
      return { 'provider.yaml': hint + dump(manifest, { lineWidth: -1 }), 'offers.txt': offers };
    } catch (error) {
      if (signal.aborted) throw error;
      const message = (error as Error).message;
      if (message !== trouble) say(`the gateway does not answer yet: ${message}`);
      trouble = message;
      if (performance.now() > until) {
        const text = `The gateway did not answer within ${options.waitSeconds} s: ${trouble}\nSee its pods (kubectl -n ${options.namespace} get pods), mend what they say, and run helm upgrade: this is then written anew.\n`;
        say(text.trimEnd());
        return { 'README.txt': text };
      }
      await sleep(2000, undefined, { signal });
    }
  }
}

interface Identity {
  readonly spkiSHA256?: string;
  readonly caBundle?: string;
}

export async function askGateway(
  cluster: Cluster,
  options: Pick<Options, 'namespace' | 'tlsSecret' | 'gateway' | 'tls'>,
  signal: AbortSignal,
): Promise<{ info: ProviderInfo; offers: string; identity: Identity }> {
  const key = { namespace: options.namespace, name: options.tlsSecret };
  const secret = await cluster.get<KubeObject & { data?: Record<string, string> }>(resources.secrets, key, signal);
  const certificate = secret?.data?.['tls.crt'];
  if (certificate === undefined)
    throw new Error(`Secret ${options.namespace}/${options.tlsSecret} with its certificate is not there`);
  const pin = spkiSha256(Buffer.from(certificate, 'base64').toString('utf8'));
  // Whatever name this is asked by, the key is the one that is stored.
  const dial = dialTls({ url: options.gateway!, spkiSHA256: pin }, 5);
  const http = createHttpClient({ host: new URL(options.gateway!).host, dial, timeoutSeconds: 5 });
  const read = async (path: string): Promise<unknown> => {
    const response = await http.send({ method: 'GET', path }, 'call', signal);
    const body = await readBody(response, path, { maxBytes: mostBytes, timeoutSeconds: 5 });
    if (response.statusCode !== 200) throw new Error(`${path} answered ${response.statusCode}`);
    return JSON.parse(body.toString('utf8'));
  };
  try {
    const [info, list] = [
      providerInfo.safeParse(await read('/v1/provider')).data,
      offerList.safeParse(await read('/v1/offers')).data,
    ];
    if (!info || !list) throw new Error('what it answers is not understood: is the image of another version?');
    const { offers } = list;
    const ca = secret?.data?.['ca.crt'];
    const identity = options.tls === 'SelfSigned' ? { spkiSHA256: pin } : ca ? { caBundle: ca } : {};
    const rows = offers.map(
      ({ name, model, available, total, prices }) =>
        `${name}  ${model}  ${available} of ${total} free  ${prices.map((one) => `${one.perGpuHour} ${one.assetSymbol}`).join(', ')}\n`,
    );
    return { info, identity, offers: rows.join('') || 'none yet: label nodes with gpulease.dev/offered=true\n' };
  } finally {
    http.close();
  }
}
