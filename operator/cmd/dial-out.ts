/** The gateway's links: one for each --dial-out, kept for as long as it runs. */
import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { Counter, Gauge, type Registry } from 'prom-client';
import type { ChainKey } from '../adapters/chain/key.ts';
import { gatewayKeyStatement, signRegistration } from '../adapters/chain/link-proofs.ts';
import { tlsTo } from '../adapters/provider/dial.ts';
import { gatewayKeyHeader } from '../api/link.ts';
import type { Log } from '../engine/types.ts';
import { offerGateway } from '../wire/dial-out.ts';
import { systemTiming } from '../wire/timing.ts';
import type { LinkPlace } from './link-place.ts';

interface DialOutOptions {
  readonly places: readonly LinkPlace[];
  /** PEM. */
  readonly ca?: string;
  readonly key: ChainKey;
  readonly certPem: () => string;
  readonly take: (connection: Duplex, from: string, place: string) => boolean;
  readonly now: () => Date;
  readonly log: Log;
  readonly registry: Registry;
}

/** For what is under way when the gateway stops; its streams are told by the gateway itself. */
const drainSeconds = 3;
const dialSeconds = 10;
/** A place that does not answer is told of so often. */
const quietMs = 60_000;

export function dialOut(options: DialOutOptions): { close(): Promise<void> } {
  const { places, key, take, now, log, registry } = options;
  const stop = new AbortController();
  let stopping = false;
  const registers = [registry];
  const failures = new Counter({
    name: 'gpulease_gateway_link_failures_total',
    help: 'Attempts to dial out that came to nothing, and links that were cut, by place.',
    labelNames: ['place'],
    registers,
  });
  const statement = gatewayKeyStatement(key, options.certPem, now);
  const instance = `0x${randomBytes(32).toString('hex')}`;

  const made = places.map((place) => {
    const { host, origin } = new URL(place.url.replace(/^wss:/, 'https:'));
    const start = tlsTo(
      {
        url: origin,
        ...(place.spkiSHA256 ? { spkiSHA256: place.spkiSHA256 } : { caBundle: options.ca }),
      },
      dialSeconds,
      {
        trust: 'end --dial-out with #spki=… as it was published, or name its CA by --dial-out-ca',
        repin: 'if its key was changed, end --dial-out with the new #spki=…',
      },
    );
    let toldAtMs = Number.NEGATIVE_INFINITY;
    const offered = offerGateway(
      {
        url: place.url,
        dial: () => start('http/1.1'),
        clock: systemTiming,
        instance,
        own: { provider: key.address, sign: (message) => signRegistration(key, message), now },
        onUp: () => {
          toldAtMs = Number.NEGATIVE_INFINITY;
          log.info({ place: host }, 'linked: consumers there reach this gateway');
        },
        onDown: () => {
          if (stopping) return;
          failures.inc({ place: host });
          log.warn({ place: host }, 'the link was cut; dialling again');
        },
        onFailure: (error, inARow) => {
          failures.inc({ place: host });
          if (systemTiming.monotonicMs() - toldAtMs < quietMs) return;
          toldAtMs = systemTiming.monotonicMs();
          log.warn({ place: host, error: error.message, inARow }, 'could not dial out; trying on');
        },
        onConnection: (asked) => {
          statement().then(
            (header) => {
              if (asked.stream.destroyed) return;
              // Told first: TLS may begin with the next byte.
              asked.accept({ [gatewayKeyHeader]: header });
              if (!take(asked.stream, asked.from || host, host))
                asked.stream.destroy(new Error('too many connections'));
            },
            (error: Error) => {
              log.error({ error: error.message }, 'the certificate of the gateway could not be signed for');
              asked.refuse(503, 'the gateway cannot prove its certificate');
            },
          );
        },
      },
      stop.signal,
    );
    return { host, offered };
  });

  new Gauge({
    name: 'gpulease_gateway_link_up',
    help: 'Whether the link to a place of --dial-out stands: 1, or 0.',
    labelNames: ['place'],
    registers,
    collect() {
      for (const { host, offered } of made) this.set({ place: host }, offered.keeper.current ? 1 : 0);
    },
  });
  new Gauge({
    name: 'gpulease_gateway_link_connections',
    help: 'Connections of consumers that came over a link and are open, by place.',
    labelNames: ['place'],
    registers,
    collect() {
      for (const { host, offered } of made) this.set({ place: host }, offered.connections);
    },
  });

  return {
    async close() {
      stopping = true;
      await Promise.all(made.map(({ offered }) => offered.close(drainSeconds)));
      stop.abort(new Error('the gateway stops'));
    },
  };
}
