/** Flags of the gateway, and the files that they name. */
import { readFileSync } from 'node:fs';
import type { RailConfig } from '../adapters/gateway/escrow-chains.ts';
import type { Address } from '../api/messages.ts';
import { isImageBeginning } from '../core/allocation/images.ts';
import { isObjectName } from '../core/allocation/kube-path.ts';
import { type PodRules, podSecurityLevels } from '../core/allocation/pod-rules.ts';
import { bytesOf } from '../core/allocation/room.ts';
import { QuantityError } from '../core/quantity.ts';
import { accountOf } from '../core/rights/accounts.ts';
import { gatewayNamespace, provisionerNamespace } from '../core/rights/provider.ts';
import { networkOf } from '../gateway/addresses.ts';
import { type LinkPlace, linkPlace } from './link-place.ts';
import { listenAt } from './listen-at.ts';
import { choice, integer, type Option, pairs, parseOptions, portRange, someOf, text, UsageError } from './options.ts';
import { checkPairGiven } from './serving-pair.ts';

const usage = `
Rents out the GPUs of this cluster: offers, quotes, tenants, vouchers, settlement.

  gateway --public-url URL --key-file FILE --chain ID=URL --addresses FILE [options]
`;

const list = (description: string, value: string): Option<string> & { many: true } => ({
  description,
  value,
  many: true,
  parse: (t) => t,
});

const decimal = (description: string, fallback: string): Option<string> & { fallback: string } => ({
  description,
  value: 'AMOUNT',
  fallback,
  parse: (t) => {
    if (!/^(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?$/.test(t)) throw new Error('must be an amount such as 0.25');
    return t;
  },
});

const address = (t: string): Address => {
  if (!/^0x[0-9a-fA-F]{40}$/.test(t)) throw new Error('must be an address: 0x and 40 hexadecimal digits');
  return t as Address;
};

export const gatewayOptions = {
  with: someOf(
    'What this process does beside listening, where it is no process of its own.',
    ['provisioner'],
    'provisioner',
  ),
  kubeconfig: text(
    'Kubeconfig of the provider\'s cluster; "in-cluster" for a pod\'s own service account.',
    'FILE',
    'in-cluster',
  ),
  namespace: text(
    'Where the gateway keeps its records and ledgers. Made when it is not there.',
    'NAME',
    'gpulease-system',
  ),
  privateNamespace: text('Where the provisioner keeps what it signed: its transactions. Default: --namespace.', 'NAME'),
  gatewayAccount: {
    description:
      "Service account of a gateway that is a process of its own: the provisioner lets it into tenants' namespaces, and nowhere else.",
    value: 'NAMESPACE/NAME',
    parse: (t: string) => {
      const [namespace = '', name = '', more] = t.split('/');
      if (more !== undefined || !isObjectName(namespace) || !isObjectName(name))
        throw new Error('must be a service account such as gpulease-system/gpulease-gateway');
      return { namespace, name };
    },
  } as Option<{ readonly namespace: string; readonly name: string }>,
  name: text('Name of the provider, as consumers are told.', 'NAME', 'provider'),
  listen: text(
    'Address and port that consumers connect to; unix:/PATH for none, where --dial-out is all there is.',
    'HOST:PORT',
    '0.0.0.0:8443',
  ),
  publicUrl: list('URL by which consumers reach this gateway. Not needed with --dial-out.', 'URL'),
  dialOut: {
    description:
      "Where to dial out to, for consumers that cannot connect to this gateway: a consumer's operator (its --reverse-url), or a relay. With #spki=HEX at its end that key alone is taken; else its certificate must be trusted by the system or --dial-out-ca.",
    value: 'wss://HOST[:PORT][#spki=HEX]',
    many: true,
    parse: linkPlace,
  } as Option<LinkPlace> & { many: true },
  dialOutCa: text('CA (PEM) to trust for --dial-out, beside the pinned keys.', 'FILE'),
  tlsCert: text('Certificate chain (PEM). Default: self-signed, kept in a Secret; its pin is logged.', 'FILE'),
  tlsKey: text('Private key of the certificate (PEM).', 'FILE'),
  keyFile: text(
    "The provider's key, which signs quotes and settlements: 32 bytes in hexadecimal, or a keystore.",
    'FILE',
  ),
  keyPasswordFile: text('Password of the keystore.', 'FILE'),
  payee: {
    description: 'Account that may withdraw what is earned. Default: that of the key.',
    value: 'ADDRESS',
    parse: address,
  },
  chain: pairs('Chain to be paid on, and its JSON-RPC endpoints.', 'ID=URL[,URL]'),
  addresses: list('Contracts as deploy-contracts wrote them: all their tokens are accepted.', 'FILE'),
  rails: list('Rails to accept: JSON, a list of {chainId, escrow, token}.', 'FILE'),
  maxUnpaid: decimal('Most that a consumer may owe before it is no longer served, in whole tokens.', '0.25'),
  quoteSeconds: integer('How long a quote holds.', 'SECONDS', 30, 3600, 120),
  chainInterval: integer('How often the escrows are read.', 'SECONDS', 1, 300, 5),
  tick: integer('How often each lease is looked at.', 'SECONDS', 1, 30, 3),
  settleInterval: integer(
    'A running lease is settled once so many seconds are earned.',
    'SECONDS',
    1,
    2_592_000,
    86_400,
  ),
  settleThreshold: decimal('… or once so much is, in whole tokens.', '5'),
  settlePatience: integer('How long a consumer may take to close a lease that has ended.', 'SECONDS', 0, 86_400, 600),
  retention: integer('How long records of settled leases are kept.', 'SECONDS', 60, 31_536_000, 604_800),
  podSecurity: choice(
    'Pod Security level of tenants. restricted: no root, no privilege escalation, no capabilities; pods that say nothing are given it, pods that need more are refused. Holds for leases made from then on.',
    podSecurityLevels,
    'baseline',
  ),
  runtimeClass: text(
    'Runtime class that all pods of tenants are run in, whatever they ask for: a sandbox such as gVisor or Kata.',
    'NAME',
  ),
  gpuRuntimeClass: text(
    'Runtime class for pods with GPUs, where the nodes need one; wins over --runtime-class.',
    'NAME',
  ),
  allowImage: list(
    'Beginning of images that tenants may run, such as ghcr.io/acme/ or docker.io/library/. Default: all that are not denied.',
    'PREFIX',
  ),
  denyImage: list('Beginning of images that tenants may not run; wins over --allow-image.', 'PREFIX'),
  imageDigestsOnly: {
    description: 'Tenants may only run images that they name by digest.',
    parse: (t: string) => t === 'true',
  } as Option<boolean>,
  denyEgress: list('Network that tenants cannot reach, beside all private ones: public addresses of your own.', 'CIDR'),
  storageClass: text(
    'StorageClass of this cluster on which tenants may have PersistentVolumeClaims. Its volumes must be reachable from the offered nodes. What is stored goes with the lease, as far as the class deletes it. Default: tenants may have none. Holds for leases made from then on.',
    'NAME',
  ),
  maxStorage: {
    description: 'How much the claims of one lease may ask for in all; given together with --storage-class.',
    value: 'SIZE',
    parse: (t: string) => {
      const bytes = sizeOf(t);
      if (bytes === undefined) throw new Error('must be a size such as 100Gi');
      return bytes;
    },
  } as Option<number>,
  trustedConsumer: {
    description:
      'Account of a consumer that gets the tenant profile "trusted" instead of "baseline": its pods may use hostNetwork and hostPath, so whoever creates pods there can read and change everything on your nodes, other tenants included. Only for clusters that are your own as well. Holds for leases made from then on; taken back at once.',
    value: 'ADDRESS',
    many: true,
    parse: address,
  } as Option<Address> & { many: true },
  knownConsumer: {
    description:
      'Account of a consumer that is no stranger: it may have several leases before something of it was settled here. Others have one until then.',
    value: 'ADDRESS',
    many: true,
    parse: address,
  } as Option<Address> & { many: true },
  kubeletCertificateAuthority: text(
    "CA (PEM) that signed the serving certificates of this cluster's kubelets, at which tenants' metrics are read. Default: the cluster's own CA.",
    'FILE',
  ),
  kubeletInsecureTls: {
    description:
      "Take any certificate of kubelets. For trials only: who answers at a node's address is then given the gateway's token.",
    parse: (t: string) => t === 'true',
  } as Option<boolean>,
  consumerServices: choice(
    'Whether pods of tenants may reach the Services that their consumers name, through tunnels that end in this process.',
    ['on', 'off'],
    'on',
  ),
  tunnelAddress: text(
    "Address of this process as pods of tenants reach it. Default: the first address of this machine that is not loopback, which is a pod's own.",
    'IP',
  ),
  tunnelPorts: portRange(
    'Where the tunnels listen, one port for each Service and port that a lease names.',
    '20000-29999',
  ),
  gatewayPods: pairs(
    "Labels of the gateway's pods, for the tenants' network policies. Default: all pods of --namespace.",
    'KEY=VALUE',
  ),
  gatewayCidr: list(
    'Network from which the gateway connects to pods, where it runs outside the cluster or on the network of its host.',
    'CIDR',
  ),
  held: {
    description:
      'Take no new leases; those that run go on. To hold, drain or block without a restart: the ConfigMap gpulease-controls.',
    parse: (t: string) => t === 'true',
  } as Option<boolean>,
  requestsPerSecond: integer(
    'Requests without a token that one address may make, four seconds of them at once.',
    'COUNT',
    1,
    100_000,
    50,
  ),
  walletRequestsPerSecond: integer(
    'Requests with a token that the leases of one account may make together, ten seconds of them at once.',
    'COUNT',
    1,
    100_000,
    500,
  ),
  unprovenConnections: integer(
    'Connections of one address on which no good token has come yet; beyond, the oldest is closed. A consumer that comes back opens two a lease at once.',
    'COUNT',
    1,
    100_000,
    1024,
  ),
  trustedProxy: list(
    'Address or network of a proxy of yours before the gateway: its X-Forwarded-For is believed, nobody else’s.',
    'CIDR',
  ),
  leaderElection: choice('Leader lock, so that several replicas can run.', ['on', 'off'], 'on'),
  operationsPort: integer('Port of /metrics, /livez and /readyz; 0 picks a free one.', 'PORT', 0, 65_535, 8080),
  logLevel: choice('How much is logged.', ['debug', 'info', 'warn', 'error'], 'info'),
  logFormat: choice('For machines or for people.', ['json', 'pretty'], 'json'),
};

const provisionerUsage = `
Makes the tenants that paid escrows stand for, takes them down, and settles. It listens to nobody, and believes what the
gateway has stored as far as the chain bears it out. Flags that the gateway has, too, get the same values.

  provisioner --key-file FILE --chain ID=URL --addresses FILE [options]
`;

/** Flags of the gateway that mean nothing where nobody listens. */
const listenerOnly = [
  'with',
  'name',
  'listen',
  'publicUrl',
  'dialOut',
  'dialOutCa',
  'tlsCert',
  'tlsKey',
  'maxUnpaid',
  'quoteSeconds',
  'consumerServices',
  'tunnelAddress',
  'tunnelPorts',
  'held',
  'requestsPerSecond',
  'walletRequestsPerSecond',
  'unprovenConnections',
  'trustedProxy',
] as const;

type ListenerOnly = (typeof listenerOnly)[number];

export const provisionerOptions = {
  ...(Object.fromEntries(
    Object.entries(gatewayOptions).filter(([name]) => !(listenerOnly as readonly string[]).includes(name)),
  ) as Omit<typeof gatewayOptions, ListenerOnly>),
  privateNamespace: text(
    'Where it keeps what it signed: its transactions. Nobody else should read Secrets there.',
    'NAME',
    provisionerNamespace,
  ),
  gatewayAccount: {
    ...gatewayOptions.gatewayAccount,
    fallback: `${gatewayNamespace}/${accountOf('gateway').serviceAccount}`,
  },
};

export function parseProvisionerOptions(args: readonly string[], env: NodeJS.ProcessEnv): GatewaySettings | undefined {
  const options = parseOptions(provisionerUsage, provisionerOptions, args, env);
  if (!options) return undefined;
  if (!options.keyFile) throw new UsageError('--key-file is missing: the key that settles');
  const unused = parseOptions('', gatewayOptions, [], {});
  if (!unused) throw new Error('the defaults of the gateway do not parse');
  return { ...unused, ...options, keyFile: options.keyFile, ...settingsOf(options), at: { host: '', port: 0 } };
}

export function parseGatewayOptions(args: readonly string[], env: NodeJS.ProcessEnv) {
  const options = parseOptions(usage, gatewayOptions, args, env);
  if (!options) return undefined;
  if (!options.keyFile) throw new UsageError('--key-file is missing: the key that signs quotes');
  if (options.publicUrl.length === 0 && options.dialOut.length === 0) {
    throw new UsageError(
      '--public-url is missing: the URL by which consumers reach this gateway; or --dial-out, where none can',
    );
  }
  for (const url of options.publicUrl) {
    if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
      throw new UsageError(`--public-url must be a URL such as https://gpu.example.com:8443; given: ${url}`);
    }
  }
  checkPairGiven({ cert: 'tls-cert', key: 'tls-key' }, options.tlsCert, options.tlsKey);
  for (const proxy of options.trustedProxy) {
    if (networkOf(proxy) === undefined)
      throw new UsageError(`--trusted-proxy must be an address, or a network such as 10.0.0.0/8; given: ${proxy}`);
  }
  return { ...options, keyFile: options.keyFile, ...settingsOf(options), at: hostAndPort(options.listen) };
}

/** What both processes need of files and flags together. */
function settingsOf(options: {
  readonly podSecurity: PodRules['podSecurity'];
  readonly runtimeClass?: string;
  readonly gpuRuntimeClass?: string;
  readonly allowImage: readonly string[];
  readonly denyImage: readonly string[];
  readonly imageDigestsOnly?: boolean;
  readonly kubeletCertificateAuthority?: string;
  readonly kubeletInsecureTls?: boolean;
  readonly storageClass?: string;
  readonly maxStorage?: number;
  readonly addresses: readonly string[];
  readonly rails: readonly string[];
  readonly chain: readonly (readonly [string, string])[];
}) {
  if ((options.storageClass === undefined) !== (options.maxStorage === undefined)) {
    throw new UsageError('--storage-class and --max-storage are given together, or neither');
  }
  if (options.storageClass !== undefined && !isObjectName(options.storageClass)) {
    throw new UsageError(`--storage-class must be the name of a StorageClass; given: ${options.storageClass}`);
  }
  for (const beginning of [...options.allowImage, ...options.denyImage]) {
    if (!isImageBeginning(beginning) || !/[/.:]/.test(beginning)) {
      throw new UsageError(
        `--allow-image and --deny-image take beginnings with a registry, such as docker.io/library/; given: ${beginning}`,
      );
    }
  }
  for (const name of [options.runtimeClass, options.gpuRuntimeClass]) {
    if (name !== undefined && !isObjectName(name)) {
      throw new UsageError(`--runtime-class and --gpu-runtime-class name a RuntimeClass; given: ${name}`);
    }
  }
  if (options.kubeletCertificateAuthority !== undefined && options.kubeletInsecureTls) {
    throw new UsageError('--kubelet-certificate-authority and --kubelet-insecure-tls contradict each other: give one');
  }
  const rails = [...options.addresses.flatMap(railsOfAddresses), ...options.rails.flatMap(railsOfFile)];
  if (rails.length === 0) {
    throw new UsageError('--addresses or --rails is missing: the contracts and tokens by which you are paid');
  }
  const rpcUrls = new Map<number, readonly string[]>();
  for (const [id, urls] of options.chain) {
    if (!/^[1-9]\d{0,15}$/.test(id)) throw new UsageError(`--chain must be ID=URL[,URL]; given: ${id}=…`);
    rpcUrls.set(Number(id), urls.split(','));
  }
  for (const rail of rails) {
    if (!rpcUrls.has(rail.chainId)) {
      throw new UsageError(`--chain ${rail.chainId}=URL is missing: a rail is on that chain`);
    }
  }
  const storage =
    options.storageClass === undefined
      ? undefined
      : { className: options.storageClass, bytes: options.maxStorage ?? 0 };
  return {
    rails: merged(rails),
    rpcUrls,
    storage,
    podRules: {
      podSecurity: options.podSecurity,
      runtimeClass: options.runtimeClass,
      gpuRuntimeClass: options.gpuRuntimeClass,
      images: {
        allow: options.allowImage,
        deny: options.denyImage,
        digestsOnly: options.imageDigestsOnly === true,
      },
    } satisfies PodRules as PodRules,
  };
}

/** Whole bytes, more than none; undefined for what is no size. */
function sizeOf(quantity: string): number | undefined {
  try {
    const bytes = bytesOf(quantity);
    return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : undefined;
  } catch (error) {
    if (error instanceof QuantityError) return undefined;
    throw error;
  }
}

export type GatewaySettings = NonNullable<ReturnType<typeof parseGatewayOptions>>;

/** One entry for each contract. */
function merged(rails: readonly RailConfig[]): RailConfig[] {
  const byContract = new Map<string, RailConfig>();
  for (const rail of rails) {
    const key = `${rail.chainId}/${rail.escrow.toLowerCase()}`;
    const before = byContract.get(key);
    byContract.set(
      key,
      before === undefined ? rail : { ...before, tokens: [...new Set([...before.tokens, ...rail.tokens])] },
    );
  }
  return [...byContract.values()];
}

function hostAndPort(listen: string): { host: string; port: number } | { path: string } {
  if (/^unix:\/[^\0]{1,100}$/.test(listen)) return { path: listen.slice('unix:'.length) };
  try {
    return listenAt('listen', listen);
  } catch {
    throw new UsageError(`--listen must be HOST:PORT or unix:/PATH; given: ${listen}`);
  }
}

export function readText(flag: string, file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new UsageError(
      `--${flag}: ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unreadable'})`,
    );
  }
}

function readJson(flag: string, file: string): unknown {
  try {
    return JSON.parse(readText(flag, file));
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(`--${flag}: ${file} is not JSON`);
  }
}

const isAddress = (value: unknown): value is Address => typeof value === 'string' && /^0x[0-9a-fA-F]{40}$/.test(value);

export function railsOfAddresses(file: string): RailConfig[] {
  const { chainId, escrow, tokens } = (readJson('addresses', file) ?? {}) as Record<string, unknown>;
  const found = Object.values((tokens ?? {}) as Record<string, { address?: unknown } | null>).map(
    (token) => token?.address,
  );
  if (!Number.isSafeInteger(chainId) || !isAddress(escrow) || found.length === 0 || !found.every(isAddress)) {
    throw new UsageError(`--addresses: ${file} must have chainId, escrow and tokens, as deploy-contracts writes them`);
  }
  return [{ chainId: chainId as number, escrow, tokens: found as Address[] }];
}

export function railsOfFile(file: string): RailConfig[] {
  const rails = readJson('rails', file);
  if (!Array.isArray(rails)) throw new UsageError(`--rails: ${file} must be a list of {chainId, escrow, token}`);
  return rails.map((rail: Record<string, unknown> | null, index) => {
    const { chainId, escrow, token } = rail ?? {};
    if (!Number.isSafeInteger(chainId) || !isAddress(escrow) || !isAddress(token)) {
      throw new UsageError(`--rails: entry ${index} of ${file} must be {chainId, escrow, token}`);
    }
    return { chainId: chainId as number, escrow, tokens: [token] };
  });
}
