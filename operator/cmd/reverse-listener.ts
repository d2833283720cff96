/** Where gateways dial in to this operator, when --reverse-listen says so: flags, wiring, metrics. */
import { Counter, Gauge, type Registry } from 'prom-client';
import { verifyRegistration } from '../adapters/chain/link-proofs.ts';
import { sharedPair } from '../adapters/gateway/shared-secret.ts';
import type { RouteState } from '../adapters/provider/routes.ts';
import { audienceOf } from '../api/link.ts';
import type { GpuProvider } from '../api/provider.ts';
import type { Cluster, Log } from '../engine/types.ts';
import { type LinkListener, startLinkListener } from '../wire/link-listener.ts';
import { createLinks, type Links } from '../wire/links.ts';
import { systemTiming } from '../wire/timing.ts';
import { linkPlaceText } from './link-place.ts';
import { listenAt } from './listen-at.ts';
import { type Option, text, UsageError } from './options.ts';
import { servingPair } from './serving-pair.ts';

export const reverseOptions = {
  reverseListen: text(
    'Address and port at which gateways of providers dial in that nobody can connect to (spec.endpoint.via: Reverse). Default: none can.',
    'HOST:PORT',
  ),
  reverseUrl: {
    description:
      'URL by which they reach it: what providers give to their gateway as --dial-out. A gateway that dialled another is refused.',
    value: 'wss://HOST[:PORT]',
    many: true,
    parse: (t: string) => {
      audienceOf(t);
      return t;
    },
  } as Option<string> & { many: true },
  reverseTlsCert: text(
    'Certificate chain (PEM) of that listener. Default: self-signed, kept in a Secret; its pin is logged with the URL.',
    'FILE',
  ),
  reverseTlsKey: text('Private key of that certificate (PEM).', 'FILE'),
};

interface ReverseSettings {
  readonly reverseListen?: string;
  readonly reverseUrl: readonly string[];
  readonly reverseTlsCert?: string;
  readonly reverseTlsKey?: string;
}

/** Throws UsageError for flags that do not go together. */
export function checkReverse(options: ReverseSettings): void {
  if (options.reverseListen === undefined) {
    if (options.reverseUrl.length > 0)
      throw new UsageError('--reverse-url is given without --reverse-listen: say where to listen, e.g. 0.0.0.0:9444');
    return;
  }
  listenAt('reverse-listen', options.reverseListen);
  if (options.reverseUrl.length === 0)
    throw new UsageError('--reverse-url is missing: the URL by which gateways reach --reverse-listen');
}

export interface ReverseListener {
  readonly links: Links;
  close(): Promise<void>;
}

export async function listenForLinks(
  options: ReverseSettings & {
    readonly cluster: Cluster;
    readonly namespace: string;
    readonly providers: () => readonly GpuProvider[];
    /** Whether all of them are known. */
    readonly synced: () => boolean;
    /** Its link came, or the last one went. */
    readonly onChange: (provider: GpuProvider) => void;
    readonly refused: Counter;
    readonly now: () => Date;
    readonly log: Log;
  },
  signal: AbortSignal,
): Promise<ReverseListener | undefined> {
  const { cluster, namespace, providers, synced, now, log } = options;
  if (options.reverseListen === undefined) return undefined;
  const { host, port } = listenAt('reverse-listen', options.reverseListen);
  const tls = await servingPair({
    flags: { cert: 'reverse-tls-cert', key: 'reverse-tls-key' },
    certFile: options.reverseTlsCert,
    keyFile: options.reverseTlsKey,
    hosts: options.reverseUrl.map((url) => new URL(url).hostname.replace(/^\[|\]$/g, '')),
    stored: (make) => sharedPair(cluster, { namespace, name: 'gpulease-reverse-tls' }, make, signal),
    now,
  });
  const withAccount = (account: string) =>
    providers().filter(
      ({ spec }) => spec.endpoint.via === 'Reverse' && spec.identity.address.toLowerCase() === account,
    );
  const links = createLinks({
    clock: systemTiming,
    now,
    absent: 'no gateway of this provider has dialled in',
    onChange: (account) => {
      for (const provider of withAccount(account)) options.onChange(provider);
    },
  });
  const listener: LinkListener = await startLinkListener({
    host,
    port,
    tls: tls.pair,
    links,
    keeper: {
      audiences: new Set(options.reverseUrl.map(audienceOf)),
      verify: verifyRegistration,
      refuses: (account) => {
        if (!synced()) return { why: 'this operator has only just started', soon: true };
        if (withAccount(account).length > 0) return undefined;
        return { why: `no GpuProvider here has identity.address ${account} and endpoint.via Reverse` };
      },
      now,
    },
    clock: systemTiming,
    log,
    maxConnections: 1024,
    onRefused: (why) => options.refused.inc({ reason: why }),
  });
  void tls.follow(listener.setTls, { log, signal });
  for (const url of options.reverseUrl)
    log.info(
      { address: `${host}:${listener.port}`, dialOut: tls.ownMade ? linkPlaceText(url, tls.spkiSHA256) : url },
      'gateways may dial in: this is their --dial-out',
    );

  // Who is no provider any more keeps no link.
  const sweep = setInterval(() => {
    if (!synced()) return;
    for (const account of links.providers()) if (withAccount(account).length === 0) links.end(account);
  }, 5000);
  return {
    links,
    async close() {
      clearInterval(sweep);
      links.drainAll();
      const closed = listener.close();
      links.endAll();
      await closed;
    },
  };
}

/** Of connections to providers, however they are made. Made once a process, as registries know each name once. */
export function connectionMetrics(
  registry: Registry,
  routes: () => ReadonlyMap<string, RouteState>,
): { refused: Counter } {
  const registers = [registry];
  new Gauge({
    name: 'gpulease_provider_link_up',
    help: 'Whether the link to a provider stands, 1 or 0, by how it is reached. Direct has none.',
    labelNames: ['provider', 'via'],
    registers,
    collect() {
      this.reset();
      for (const [provider, { via, up }] of routes()) if (up !== undefined) this.set({ provider, via }, up ? 1 : 0);
    },
  });
  new Gauge({
    name: 'gpulease_provider_link_connections',
    help: 'Connections that are open over links to a provider.',
    labelNames: ['provider', 'via'],
    registers,
    collect() {
      this.reset();
      for (const [provider, { via, connections }] of routes())
        if (connections !== undefined) this.set({ provider, via }, connections);
    },
  });
  return {
    refused: new Counter({
      name: 'gpulease_link_refusals_total',
      help: 'Gateways that dialled in and were refused: too often, too many, or not whom they said.',
      labelNames: ['reason'],
      registers,
    }),
  };
}
