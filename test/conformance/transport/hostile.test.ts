/** Peers that lie, flood or say nothing, on real sockets: what they come to, and that nobody else notices. */
import { createHash, randomBytes } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import tls from 'node:tls';
import { afterEach, describe, expect, test } from 'vitest';
import { signRegistration, verifyRegistration } from '../../../operator/adapters/chain/link-proofs.ts';
import { tlsTo } from '../../../operator/adapters/provider/dial.ts';
import { IdentityMismatchError, UnknownOutcomeError } from '../../../operator/adapters/provider/errors.ts';
import { createHttpClient } from '../../../operator/adapters/provider/http.ts';
import { createRoutes } from '../../../operator/adapters/provider/routes.ts';
import {
  audienceOf,
  gatewayKeyHeader,
  linkPath,
  linkProtocol,
  maxRegistrationSeconds,
  registrationMessage,
} from '../../../operator/api/link.ts';
import type { Address } from '../../../operator/api/messages.ts';
import { defaultLimits, type Relay, type RelayLimits, startRelay } from '../../../operator/relay/relay.ts';
import type { LinkListener } from '../../../operator/wire/link-listener.ts';
import { createLinks, type Links } from '../../../operator/wire/links.ts';
import { systemTiming, type Timing } from '../../../operator/wire/timing.ts';
import { openWebSocket, type WebSocketStream } from '../../../operator/wire/websocket.ts';
import { socketPair } from '../../support/socket-pair.ts';
import { type Authority, authority } from '../../unit/adapters/provider/tls.ts';
import {
  type EndServer,
  endServer,
  hasty,
  isLinked,
  keys,
  offer,
  operatorListener,
  providerAt,
  publicUrl,
  silent,
} from './ways.ts';

const now = () => new Date();
const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
const eventually = async (what: () => boolean | Promise<boolean>, withinMs = 20_000): Promise<void> => {
  const until = performance.now() + withinMs;
  while (!(await what())) {
    if (performance.now() > until) throw new Error(`not within ${withinMs} ms: ${what}`);
    await sleep(20);
  }
};

interface Lab {
  readonly ca: Authority;
  readonly end: EndServer;
  readonly links: Links;
  readonly listener: LinkListener;
  readonly url: string;
  readonly place: { url: string; ca: string; audienceUrl: string };
}

async function lab(
  options: { clock?: Timing; perSecond?: number; burst?: number; unprovenConnections?: number } = {},
): Promise<Lab> {
  const { clock = systemTiming } = options;
  const ca = await authority('ca');
  const end = await endServer(ca);
  const links = createLinks({ clock, now });
  const { perSecond, burst, unprovenConnections } = options;
  const listener = await operatorListener(ca, links, { clock, perSecond, burst, unprovenConnections });
  closing.push(async () => {
    links.endAll();
    end.close();
    await listener.close();
  });
  const url = `wss://127.0.0.1:${listener.port}`;
  return { ca, end, links, listener, url, place: { url, ca: ca.pem, audienceUrl: publicUrl } };
}

const clientOf = (links: Links, timeoutSeconds = 10) => {
  const route = createRoutes({ links, clock: systemTiming, now, timeoutSeconds })(providerAt({ via: 'Reverse' }));
  const client = createHttpClient({ host: 'gateway', dial: route.dial, timeoutSeconds });
  closing.push(() => client.close());
  return client;
};
const served = async (links: Links) => {
  const response = await clientOf(links).send({ method: 'GET', path: '/echo' }, 'call');
  response.resume();
  return response.statusCode;
};

/** A WebSocket to the listener, before a word is said. */
async function dialled({ url, ca }: Lab, path = linkPath, protocol = linkProtocol): Promise<WebSocketStream> {
  const socket = await tlsTo({ url: url.replace('wss:', 'https:'), caBundle: ca.pem }, 20)('http/1.1');
  const stream = await openWebSocket(socket, {
    host: 'x',
    path,
    protocol,
    withinSeconds: 20,
    clock: systemTiming,
  });
  stream.on('error', () => undefined);
  closing.push(() => stream.destroy());
  return stream;
}
const challengeOf = async (stream: WebSocketStream): Promise<string> =>
  (JSON.parse(await stream.heard(20, systemTiming)) as { challenge: string }).challenge;
const signed = async (challenge: string, signer = keys.provider) => {
  const message = registrationMessage({
    provider: keys.provider.address,
    audienceUrl: audienceOf(publicUrl),
    challenge,
    instance: `0x${randomBytes(32).toString('hex')}`,
    expiresAt: Math.floor(Date.now() / 1000) + maxRegistrationSeconds,
  });
  return JSON.stringify({ ...message, signature: await signRegistration(signer, message) });
};
const verdictOf = async (stream: WebSocketStream) =>
  JSON.parse(await stream.heard(20, systemTiming)) as { accepted: boolean; why?: string };

describe('a stranger', () => {
  test('does not become a provider by naming it', async () => {
    const it = await lab();
    const stream = await dialled(it);
    stream.say(await signed(await challengeOf(stream), keys.stranger));
    expect(await verdictOf(stream)).toMatchObject({ accepted: false, why: expect.stringMatching(/not signed by/) });
    expect(it.links.providers()).toEqual([]);
  });

  test('does not become one by what it caught on another connection', async () => {
    const it = await lab();
    const first = await dialled(it);
    const caught = await signed(await challengeOf(first));
    first.say(caught);
    expect(await verdictOf(first)).toEqual({ accepted: true });
    const second = await dialled(it);
    await challengeOf(second);
    second.say(caught);
    expect(await verdictOf(second)).toMatchObject({ accepted: false, why: expect.stringMatching(/another challenge/) });
  });

  test('does not become one by passing on the challenge of another listener', async () => {
    const [theirs, own] = [await lab(), await lab()];
    // The provider dials the stranger's own listener and signs for that one; its challenge came from the other.
    const victim = await dialled(theirs);
    const challenge = await challengeOf(victim);
    const message = registrationMessage({
      provider: keys.provider.address,
      audienceUrl: audienceOf(own.url),
      challenge,
      instance: `0x${'1'.repeat(64)}`,
      expiresAt: Math.floor(Date.now() / 1000) + 60,
    });
    victim.say(JSON.stringify({ ...message, signature: await signRegistration(keys.provider, message) }));
    expect(await verdictOf(victim)).toMatchObject({ accepted: false, why: expect.stringMatching(/is for wss/) });
  });

  test('who is a provider elsewhere, and proves it, is not one here', async () => {
    const it = await lab();
    const why: string[] = [];
    const offered = offer(it.end, it.place, { key: keys.stranger, onFailure: ({ message }) => why.push(message) });
    closing.push(() => offered.close(0));
    await eventually(() => why.length > 0);
    expect(why[0]).toBe('not known here');
  });
});

describe('between consumer and gateway', () => {
  test('nobody can put a certificate of its own: nothing is sent to it', async () => {
    const it = await lab();
    const offered = offer(it.end, it.place);
    closing.push(() => offered.close(0));
    await isLinked(offered);
    // What a relay would have to do: answer in the gateway's place, with the gateway's own statement.
    const other = await endServer(it.ca);
    closing.push(() => other.close());
    let asked = 0;
    other.server.on('request', () => {
      asked += 1;
    });
    const honest = await it.links.connect(keys.provider.address.toLowerCase(), '', 10);
    honest.connection.destroy();
    const statement = honest.headers[gatewayKeyHeader];
    for (const said of [statement, undefined]) {
      const links: Links = {
        ...it.links,
        connect: async () => {
          const made = await it.links.connect(keys.provider.address.toLowerCase(), '', 10);
          made.connection.destroy();
          const { near, far } = await socketPair();
          other.take(far, '192.0.2.1');
          return { connection: near, headers: { [gatewayKeyHeader]: said } };
        },
      };
      await expect(clientOf(links).send({ method: 'GET', path: '/echo' }, 'call')).rejects.toBeInstanceOf(
        IdentityMismatchError,
      );
    }
    expect(asked).toBe(0);
    expect(await served(it.links)).toBe(200);
  });

  test('a pin that the consumer wrote down counts, too', async () => {
    const it = await lab();
    const offered = offer(it.end, it.place);
    closing.push(() => offered.close(0));
    await isLinked(offered);
    const ask = (spkiSHA256: string) => {
      const routeOf = createRoutes({ links: it.links, clock: systemTiming, now, timeoutSeconds: 10 });
      const route = routeOf(providerAt({ via: 'Reverse', spkiSHA256 }));
      const client = createHttpClient({ host: 'gateway', dial: route.dial, timeoutSeconds: 10 });
      closing.push(() => client.close());
      return client.send({ method: 'GET', path: '/echo' }, 'call').then((response) => {
        response.resume();
        return response.statusCode;
      });
    };
    expect(await ask(it.end.pair.spki)).toBe(200);
    await expect(ask(createHash('sha256').update('x').digest('hex'))).rejects.toBeInstanceOf(IdentityMismatchError);
  });
});

describe('a listener', () => {
  test('lets go of those who say nothing, at whatever point, and keeps who is linked', async () => {
    const it = await lab({ clock: hasty });
    const offered = offer(it.end, it.place);
    closing.push(() => offered.close(0));
    await isLinked(offered);
    const port = it.listener.port;
    const idle: Socket[] = [];
    for (let i = 0; i < 20; i++) idle.push(connect(port, '127.0.0.1'));
    for (let i = 0; i < 5; i++) idle.push(tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false }));
    for (let i = 0; i < 5; i++) {
      const half = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false });
      half.write('GET /v1/link HTTP/1.1\r\nHost: x\r\n');
      idle.push(half);
    }
    for (const socket of idle) {
      socket.on('error', () => undefined);
      socket.resume();
    }
    closing.push(() => {
      for (const socket of idle) socket.destroy();
    });
    const wordless = await Promise.all([dialled(it), dialled(it)]);
    await eventually(() => wordless.every((stream) => stream.destroyed) && idle.every((one) => one.destroyed), 28_000);
    expect(it.listener.connections).toBe(1);
    expect(await served(it.links)).toBe(200);
  }, 40_000);

  test('keeps a few of one address that say nothing, the newest of them, and who is linked', async () => {
    const it = await lab({ unprovenConnections: 4 });
    const offered = offer(it.end, it.place);
    closing.push(() => offered.close(0));
    await isLinked(offered);
    const idle: Socket[] = [];
    closing.push(() => {
      for (const socket of idle) socket.destroy();
    });
    for (let i = 0; i < 40; i++) {
      const socket = connect(it.listener.port, '127.0.0.1');
      socket.on('error', () => undefined);
      socket.resume();
      idle.push(socket);
    }
    await eventually(() => it.listener.connections === 5);
    expect(it.links.state(keys.provider.address.toLowerCase()).links).toBe(1);
    expect(await served(it.links)).toBe(200);
    // Another gateway still comes in between them.
    const second = offer(it.end, it.place);
    closing.push(() => second.close(0));
    await isLinked(second);
  });

  test('refuses an address that dials too often, and goes on serving', async () => {
    const it = await lab({ perSecond: 1, burst: 10 });
    const offered = offer(it.end, it.place);
    closing.push(() => offered.close(0));
    await isLinked(offered);
    const told = await Promise.all(
      Array.from({ length: 40 }, () =>
        dialled(it).then(
          () => 'let in',
          (error: Error) => error.message,
        ),
      ),
    );
    expect(told.filter((one) => one === 'let in').length).toBeLessThan(20);
    expect(told.find((one) => one !== 'let in')).toMatch(/429.*too many connections/);
    expect(await served(it.links)).toBe(200);
  });

  test.each<[string, (stream: WebSocketStream) => void]>([
    ['noise instead of words', (stream) => stream.write(randomBytes(10_000))],
    ['a speech that does not end', (stream) => stream.say('x'.repeat(100_000))],
    ['something that is no registration', (stream) => stream.say('{"a":1}')],
  ])('cuts off who sends %s', async (_, misbehave) => {
    const it = await lab();
    const stream = await dialled(it);
    await challengeOf(stream);
    misbehave(stream);
    stream.resume();
    await eventually(() => it.listener.connections === 0);
  });

  test('cuts off a gateway that proves its key and then speaks no HTTP/2', async () => {
    const it = await lab();
    const stream = await dialled(it);
    stream.say(await signed(await challengeOf(stream)));
    expect(await verdictOf(stream)).toEqual({ accepted: true });
    stream.resume();
    stream.write(randomBytes(100_000));
    await eventually(() => it.listener.connections === 0);
    expect(it.links.providers()).toEqual([]);
  });

  test('speaks of nothing else', async () => {
    const it = await lab();
    await expect(dialled(it, '/v1/leases')).rejects.toThrow(/404.*gateways dial/);
    await expect(dialled(it, linkPath, 'chat')).rejects.toThrow(/400.*speaks gpulease-link/);
    // Only a relay lets consumers ask.
    await expect(dialled(it, `/v1/reach/${keys.provider.address}`)).rejects.toThrow(/404/);
  });
});

describe('a relay', () => {
  interface RelayLab {
    readonly relay: Relay;
    readonly end: EndServer;
    readonly url: string;
    readonly ca: Authority;
    client(address?: Address): ReturnType<typeof createHttpClient>;
  }
  /** Another provider dials the relay from here: what it is told. */
  async function refusalOfStranger(it: RelayLab): Promise<string> {
    const why: string[] = [];
    const second = offer(
      it.end,
      { url: it.url.replace('https:', 'wss:'), ca: it.ca.pem, audienceUrl: publicUrl },
      { key: keys.stranger, onFailure: ({ message }) => why.push(message) },
    );
    closing.push(() => second.close(0));
    await eventually(() => why.length > 0);
    return why[0]!;
  }

  async function relayed(limits: Partial<RelayLimits> = {}, clock: Timing = systemTiming): Promise<RelayLab> {
    const ca = await authority('ca');
    const end = await endServer(ca);
    const relay = await startRelay({
      host: '127.0.0.1',
      port: 0,
      tls: await ca.issue([{ CN: ['relay'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] }),
      audiences: new Set([audienceOf(publicUrl)]),
      verify: verifyRegistration,
      limits,
      clock,
      now,
      log: silent,
    });
    const url = `https://127.0.0.1:${relay.port}`;
    const offered = offer(end, { url: url.replace('https:', 'wss:'), ca: ca.pem, audienceUrl: publicUrl });
    closing.push(async () => {
      await offered.close(0);
      end.close();
      await relay.close(0);
    });
    await isLinked(offered);
    return {
      relay,
      end,
      url,
      ca,
      client(address: Address = keys.provider.address) {
        const route = createRoutes({ clock: systemTiming, now, timeoutSeconds: 10 })(
          providerAt({ via: 'Relay', relay: { url, caBundle: ca.pem } }, address),
        );
        const client = createHttpClient({ host: 'gateway', dial: route.dial, timeoutSeconds: 10 });
        closing.push(() => {
          client.close();
          route.close();
        });
        return client;
      },
    };
  }
  const get = async (client: ReturnType<RelayLab['client']>, path = '/echo') => {
    const response = await client.send({ method: 'GET', path }, 'stream');
    let said = '';
    for await (const part of response) said += part;
    return said;
  };
  const hold = (client: ReturnType<RelayLab['client']>) =>
    client.upgrade({ method: 'POST', path: '/hold', headers: { Connection: 'Upgrade', Upgrade: 'test' } }).then(
      () => 'held',
      (error: Error) => error.message,
    );

  test('tells the gateway from which address a consumer comes, so that it can count', async () => {
    const it = await relayed();
    expect(await get(it.client(), '/from')).toBe('link 127.0.0.1');
  });

  test('says so when nobody has dialled in for a provider', async () => {
    const it = await relayed();
    const error = await get(it.client(keys.stranger.address)).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(UnknownOutcomeError);
    expect(String(error)).toMatch(/nobody has dialled in|no answer within/);
  }, 30_000);

  test('bounds the connections of one consumer, and lets others go on', async () => {
    const it = await relayed({ streamsOfCaller: 5 });
    const greedy = it.client();
    const told = await Promise.all(Array.from({ length: 12 }, () => hold(greedy)));
    expect(told.filter((one) => one === 'held')).toHaveLength(5);
    expect(told.find((one) => one !== 'held')).toMatch(/5 connections are open here already/);
    expect(await get(it.client())).toMatch(/"size":0/);
    expect(it.relay.figures().refused).toMatchObject({ stream: 7 });
  });

  test('bounds how often one address asks', async () => {
    const it = await relayed({ streamsPerSecond: 1 });
    const client = it.client();
    const told = await Promise.all(Array.from({ length: 20 }, () => hold(client)));
    expect(told.filter((one) => one === 'held').length).toBeLessThan(12);
    expect(told.find((one) => one !== 'held')).toMatch(/too many connections are asked for/);
  });

  test('bounds the connections to one provider, and all together', async () => {
    for (const limits of [{ streamsOfProvider: 3 }, { streams: 3 }]) {
      const it = await relayed(limits);
      const told = await Promise.all(Array.from({ length: 6 }, () => hold(it.client())));
      expect(told.filter((one) => one === 'held')).toHaveLength(3);
    }
  });

  test('bounds consumers and providers of one address, since anybody may be many', async () => {
    const it = await relayed({ callersOfAddress: 2, providersOfAddress: 1 });
    const clients = [it.client(), it.client(keys.stranger.address)];
    expect(await get(clients[0]!)).toMatch(/"size":0/);
    await get(clients[1]!).catch(() => undefined);
    await expect(get(it.client())).rejects.toThrow(/as many callers are here from this address|no answer within/);
    expect(it.relay.figures().callers).toBe(2);
    expect(await get(clients[0]!)).toMatch(/"size":0/);
    expect(await refusalOfStranger(it)).toMatch(/as many providers dial in from this address/);
  }, 40_000);

  test('bounds its providers, by those who prove a key', async () => {
    const it = await relayed({ providers: 1 });
    expect(await refusalOfStranger(it)).toMatch(/as many providers as it takes/);
  });

  test('breaks off what idles, and not what lives', async () => {
    const it = await relayed({ idleSeconds: 8 }, hasty);
    const client = it.client();
    const idle = await client.upgrade({
      method: 'POST',
      path: '/hold',
      headers: { Connection: 'Upgrade', Upgrade: 'test' },
    });
    const live = await client.upgrade({
      method: 'POST',
      path: '/echo',
      headers: { Connection: 'Upgrade', Upgrade: 'test' },
    });
    live.socket!.resume();
    const timer = setInterval(() => live.socket!.write('x'), 200);
    closing.push(() => clearInterval(timer));
    await new Promise((resolve) => idle.socket!.resume().once('close', resolve));
    expect(live.socket!.destroyed).toBe(false);
    live.socket!.destroy();
  });

  test('holds a provider to a rate', async () => {
    const it = await relayed({ bytesPerSecond: 4_000_000 });
    const from = performance.now();
    const response = await it.client().send({ method: 'GET', path: '/bytes/12000000' }, 'stream');
    let size = 0;
    for await (const part of response) size += (part as Buffer).length;
    expect(size).toBe(12_000_000);
    // Three seconds, less what the buffers on the way took at once.
    expect(performance.now() - from).toBeGreaterThan(1000);
  }, 30_000);

  test('has bounds by default', () => {
    for (const [name, value] of Object.entries(defaultLimits))
      if (name !== 'bytesPerSecond') expect(value, name).toBeGreaterThan(0);
  });
});
