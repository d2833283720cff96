/** `gpulease relay`: reads configuration, wires, starts, stops. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Counter, Gauge, type Registry } from 'prom-client';
import { verifyRegistration } from '../adapters/chain/link-proofs.ts';
import type { ServingCertificate } from '../adapters/gateway/certificate.ts';
import { createLog } from '../adapters/telemetry/log.ts';
import { createMetrics } from '../adapters/telemetry/metrics.ts';
import { startOperationsServer } from '../adapters/telemetry/operations-server.ts';
import { audienceOf } from '../api/link.ts';
import { defaultLimits, type Relay, startRelay } from '../relay/relay.ts';
import { systemTiming } from '../wire/timing.ts';
import { linkPlaceText } from './link-place.ts';
import { listenAt } from './listen-at.ts';
import { choice, integer, type Option, parseOptions, text, UsageError } from './options.ts';
import { servingPair } from './serving-pair.ts';

const usage = `
A relay for providers that nobody can connect to. Their gateways dial in and prove the provider's key; operators dial in and
name the provider's account; connections between the two are joined. What passes is TLS from end to end: a relay can cut it,
and neither read nor change it. It keeps nothing but its own certificate.

  gpulease relay --url wss://relay.example.com:9444 [options]

A provider gives its gateway --dial-out and the URL that is logged at the start; a consumer writes
spec.endpoint: {via: Relay, relay: {url: https://relay.example.com:9444}} into the GpuProvider.
`;

const limit = (name: keyof typeof defaultLimits, description: string, most: number, least = 1) =>
  integer(description, 'COUNT', least, most, defaultLimits[name]);

export const relayOptions = {
  listen: text('Address and port at which both sides dial in.', 'HOST:PORT', '0.0.0.0:9444'),
  url: {
    description: 'URL by which they do. A gateway that dialled another is refused.',
    value: 'wss://HOST[:PORT]',
    many: true,
    parse: (t: string) => {
      audienceOf(t);
      return t;
    },
  } as Option<string> & { many: true },
  tlsCert: text('Certificate chain (PEM). Default: self-signed, kept in --state; its pin is logged.', 'FILE'),
  tlsKey: text('Private key of the certificate (PEM).', 'FILE'),
  state: text('Folder for the self-signed certificate.', 'DIR', 'gpulease-relay'),
  provider: {
    description: 'Account of a provider that may use this relay. Default: everyone who proves an account.',
    value: 'ADDRESS',
    many: true,
    parse: (t: string) => {
      if (!/^0x[0-9a-fA-F]{40}$/.test(t)) throw new Error('must be an address: 0x and 40 hexadecimal digits');
      return t.toLowerCase();
    },
  } as Option<string> & { many: true },
  providers: limit('providers', 'Providers at a time.', 100_000),
  providersOfAddress: limit('providersOfAddress', 'Providers that dial in from one address.', 100_000),
  callers: limit('callers', 'Consumers at a time, of all providers.', 100_000),
  callersOfProvider: limit('callersOfProvider', 'Consumers of one provider at a time.', 100_000),
  callersOfAddress: limit('callersOfAddress', 'Consumers from one address at a time.', 100_000),
  streams: limit('streams', 'Connections at a time, of all.', 1_000_000),
  streamsOfCaller: limit('streamsOfCaller', 'Connections of one consumer at a time.', 4096),
  streamsOfProvider: limit('streamsOfProvider', 'Connections to one provider at a time.', 100_000),
  streamsPerSecond: limit('streamsPerSecond', 'New connections that one address may ask for in a second.', 100_000),
  dialsPerSecond: limit('dialsPerSecond', 'How often one address may dial in, in a second.', 100_000),
  bytesPerSecond: limit(
    'bytesPerSecond',
    'Bytes a second to and from one provider, all its connections together; 0: no limit.',
    100_000_000_000,
    0,
  ),
  idleSeconds: limit('idleSeconds', 'A connection on which nothing passes for so many seconds is broken off.', 604_800),
  drainSeconds: integer('When it stops: how long connections may take to end by themselves.', 'SECONDS', 0, 3600, 25),
  operationsPort: integer('Port of /metrics, /livez and /readyz; 0 picks a free one.', 'PORT', 0, 65_535, 8080),
  logLevel: choice('How much is logged.', ['debug', 'info', 'warn', 'error'], 'info'),
  logFormat: choice('For machines or for people.', ['json', 'pretty'], 'json'),
};

/** Runs until SIGTERM or SIGINT. Throws UsageError for configuration that cannot be right. */
export async function runRelay(args: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
  const options = parseOptions(usage, relayOptions, args, env);
  if (!options) return;
  if (options.url.length === 0)
    throw new UsageError('--url is missing: the URL by which gateways and operators reach this relay');
  const { host, port } = listenAt('listen', options.listen);
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  const log = createLog({ name: 'relay', level: options.logLevel, pretty: options.logFormat === 'pretty' });
  const metrics = createMetrics();
  const now = () => new Date();
  const tls = await servingPair({
    flags: { cert: 'tls-cert', key: 'tls-key' },
    certFile: options.tlsCert,
    keyFile: options.tlsKey,
    hosts: options.url.map((url) => new URL(url).hostname.replace(/^\[|\]$/g, '')),
    stored: (make) => inFolder(options.state, make),
    now,
  });
  const { audiences, limits } = {
    audiences: new Set(options.url.map(audienceOf)),
    limits: {
      providers: options.providers,
      providersOfAddress: options.providersOfAddress,
      callers: options.callers,
      callersOfProvider: options.callersOfProvider,
      callersOfAddress: options.callersOfAddress,
      streams: options.streams,
      streamsOfCaller: options.streamsOfCaller,
      streamsOfProvider: options.streamsOfProvider,
      streamsPerSecond: options.streamsPerSecond,
      dialsPerSecond: options.dialsPerSecond,
      bytesPerSecond: options.bytesPerSecond,
      idleSeconds: options.idleSeconds,
    },
  };
  const relay = await startRelay({
    host,
    port,
    tls: tls.pair,
    audiences,
    verify: verifyRegistration,
    ...(options.provider.length > 0 ? { allowed: new Set(options.provider) } : {}),
    limits,
    clock: systemTiming,
    now,
    log,
  });
  void tls.follow(relay.setTls, { log, signal: stop.signal });
  showRelay(metrics.registry, relay);
  const operations = await startOperationsServer({
    port: options.operationsPort,
    registry: metrics.registry,
    log,
    live: () => ({ process: true }),
    ready: () => ({ listening: !stop.signal.aborted }),
  });
  for (const url of options.url)
    log.info(
      {
        address: `${host}:${relay.port}`,
        operationsPort: operations.port,
        dialOut: tls.ownMade ? linkPlaceText(url, tls.spkiSHA256) : url,
        ...(tls.ownMade ? { spkiSHA256: tls.spkiSHA256 } : {}),
      },
      'relay listening: gateways dial it by dialOut, operators by its URL and spkiSHA256',
    );
  await new Promise<void>((resolve) => {
    if (stop.signal.aborted) resolve();
    stop.signal.addEventListener('abort', () => resolve(), { once: true });
  });
  await relay.close(options.drainSeconds);
  await operations.close();
  log.info({}, 'relay stopped');
}

async function inFolder(dir: string, make: () => Promise<ServingCertificate>): Promise<ServingCertificate> {
  const [certFile, keyFile] = [join(dir, 'tls.crt'), join(dir, 'tls.key')];
  try {
    return { cert: readFileSync(certFile, 'utf8'), key: readFileSync(keyFile, 'utf8') };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
      throw new UsageError(`--state: ${dir} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unreadable'})`);
  }
  const made = await make();
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    writeFileSync(keyFile, made.key, { mode: 0o600 });
    writeFileSync(certFile, made.cert);
  } catch (error) {
    throw new UsageError(
      `--state: ${dir} cannot be written (${(error as NodeJS.ErrnoException).code ?? 'unwritable'}): name another folder, or give --tls-cert and --tls-key`,
    );
  }
  return made;
}

function showRelay(registry: Registry, relay: Relay): void {
  const registers = [registry];
  const figures = {
    gpulease_relay_providers: ['Providers with a link.', 'providers'],
    gpulease_relay_callers: ['Connections of consumers to this relay.', 'callers'],
    gpulease_relay_streams: ['Connections that are joined now.', 'streams'],
  } as const;
  for (const [name, [help, field]] of Object.entries(figures))
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(relay.figures()[field]);
      },
    });
  const totals = {
    gpulease_relay_streams_total: ['Connections that were asked for.', 'streamsTotal'],
    gpulease_relay_bytes_total: ['Bytes that passed, both ways.', 'bytesTotal'],
  } as const;
  for (const [name, [help, field]] of Object.entries(totals))
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(relay.figures()[field]);
      },
    });
  new Counter({
    name: 'gpulease_relay_refusals_total',
    help: 'Refused, by what: rate, full, registration, stream.',
    labelNames: ['reason'],
    registers,
    collect() {
      this.reset();
      for (const [reason, count] of Object.entries(relay.figures().refused)) this.inc({ reason }, count);
    },
  });
}
