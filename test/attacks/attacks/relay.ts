/**
 * Where the gateway dialled in, a relay or the operator of a consumer: it carries others, and could name any caller for each of its
 * connections. What it must not come to: that whoever comes another way is not served.
 */
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import tls, { type TLSSocket } from 'node:tls';
import { type Attack, must } from '../attack.ts';
import type { Carrier, Target } from '../target.ts';

const carrierOf = ({ carrier }: Target): Carrier => {
  if (!carrier) throw new Error('the gateway has dialled nobody');
  return carrier;
};

const attack = (name: string, expected: string, run: Attack['run']): Attack => ({
  ...{ who: 'relay', name, expected, run },
  ...{ needs: 'clusters', slow: true },
});

async function secured(socket: Duplex): Promise<TLSSocket> {
  const made = tls.connect({ socket, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] });
  await once(made, 'secureConnect');
  made.on('error', () => undefined);
  return made;
}

/** What came back, until it holds so many answers or the time is over. */
async function answersTo(socket: TLSSocket, requests: readonly string[], seconds: number): Promise<string> {
  let text = '';
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
  });
  socket.write(requests.join(''));
  const answers = () => (text.match(/HTTP\/1\.1 \d{3} /g) ?? []).length;
  for (let i = 0; i < seconds * 20 && answers() < requests.length && !socket.destroyed; i++) await sleep(50);
  return text;
}

const request = (line: string, headers: readonly string[] = [], body = ''): string =>
  [line, 'host: gateway', ...headers, '', body].join('\r\n');

export const relay: readonly Attack[] = [
  attack('quotes without end, in the name of another caller each', '429 for the link', async (target) => {
    const quote = request('POST /v1/quotes HTTP/1.1', ['content-type: application/json', 'content-length: 2'], '{}');
    const startedAt = performance.now();
    const texts = await Promise.all(
      Array.from({ length: 60 }, async (_, i) => {
        const socket = await secured(await carrierOf(target).connect(`198.51.100.${i}`));
        // Fewer than one caller may ask for at once, so that no name is refused for itself.
        const text = await answersTo(socket, Array<string>(190).fill(quote), 60);
        socket.destroy();
        return text;
      }),
    );
    const seconds = (performance.now() - startedAt) / 1000;
    const all = texts.join('');
    const answered = all.match(/HTTP\/1\.1 400 /g)?.length ?? 0;
    const refused = all.match(/HTTP\/1\.1 429 /g)?.length ?? 0;
    // What is refused proves the limit; that nothing is, only where more was asked for than flows in.
    must(refused > 0, `${answered} were answered in ${seconds.toFixed(0)} s`);
    must(all.includes('over this link'), /"detail":"([^"]*)"/.exec(all)?.[1] ?? 'no reason');
    return `${answered} were answered in ${seconds.toFixed(0)} s, ${refused} told 429`;
  }),
  attack('3,000 connections that say nothing', 'few stay open, others are answered meanwhile', async (target) => {
    const held: Duplex[] = [];
    let refused = 0;
    const startedAt = performance.now();
    for (let batch = 0; batch < 12; batch++)
      await Promise.all(
        Array.from({ length: 250 }, async (_, i) => {
          const socket = await carrierOf(target)
            .connect(`name-${batch}-${i}`)
            .catch(() => undefined);
          if (!socket) {
            refused += 1;
            return;
          }
          socket.on('error', () => undefined);
          socket.resume();
          held.push(socket);
        }),
      );
    const seconds = (performance.now() - startedAt) / 1000;
    await sleep(500);
    const open = held.filter(({ destroyed }) => !destroyed).length;
    const honest = await target.honest();
    for (const socket of held) socket.destroy();
    must(honest === undefined, `an honest caller meanwhile: ${honest}`);
    must(open <= 1100, `${open} of ${held.length} stay open`);
    // By then those that say nothing have been let go for that alone.
    must(seconds < 9, `too slow to tell: it took ${seconds.toFixed(0)} s to open them`);
    return `${open} of ${held.length} stay open, ${refused} were refused`;
  }),
  attack('somebody else’s lease, with what it could overhear: nothing but an address', '401', async (target) => {
    const socket = await secured(await carrierOf(target).connect('127.0.0.1'));
    const text = await answersTo(socket, [request(`GET /v1/leases/${target.victimLeaseId} HTTP/1.1`)], 10);
    socket.destroy();
    must(text.startsWith('HTTP/1.1 401'), text.slice(0, 100) || 'no answer');
    return '401';
  }),
  attack(
    'an address that the owner trusts as a proxy, and a caller before it',
    'it is not believed',
    async (target) => {
      const quote = request(
        'POST /v1/quotes HTTP/1.1',
        ['content-type: application/json', 'content-length: 2', 'x-forwarded-for: 203.0.113.9'],
        '{}',
      );
      // All in one name: were the header believed, that name would be somebody else's by now.
      let text = '';
      for (let i = 0; i < 10 && !/ 429 /.test(text); i++) {
        const socket = await secured(await carrierOf(target).connect('10.0.0.1'));
        text = await answersTo(socket, Array<string>(100).fill(quote), 20);
        socket.destroy();
      }
      must(/HTTP\/1\.1 429 /.test(text), 'no 429 for one name');
      return '429 for its name';
    },
  ),
  attack('a request that is split over TLS records and garbage after it', 'one answer, and the end', async (target) => {
    const socket = await secured(await carrierOf(target).connect('192.0.2.7'));
    let text = '';
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
    });
    for (const part of ['GET /v1/prov', 'ider HTTP/1.1\r\nhost', ': x\r\n\r\n', '\0\x01\x02 HTTP/9.9\r\n\r\n']) {
      socket.write(part);
      await sleep(50);
    }
    for (let i = 0; i < 200 && !socket.destroyed && !socket.readableEnded; i++) await sleep(50);
    const answers = text.match(/HTTP\/1\.1 \d{3} /g) ?? [];
    socket.destroy();
    must(answers.length === 2 && / 400 /.test(answers[1]!), answers.join(', ') || 'no answer');
    return `${answers.join(', ')}, then the end`;
  }),
];
