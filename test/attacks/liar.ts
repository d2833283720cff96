/**
 * A provider that lies: it is the sandbox's own, with its key and its nodes, and stands before its gateway with a certificate that
 * the consumer pinned. What it says is what the gateway says, but for what a lie changes on the way. It speaks HTTP/1.1 alone.
 */

import type { IncomingMessage, ServerResponse } from 'node:http';
import https, { type Server } from 'node:https';
import { selfSigned, spkiSha256 } from '../../operator/adapters/gateway/certificate.ts';

type Json = Record<string, unknown>;

export interface Lie {
  /** Whether it is about this request, by method and path. */
  readonly about: RegExp;
  /** Another answer, of JSON. */
  readonly change?: (body: Json) => unknown | Promise<unknown>;
  /** Another line of a watch, or more of them. */
  readonly lines?: (event: Json) => readonly unknown[];
  /** Anything at all, in place of an answer. */
  readonly answer?: (request: IncomingMessage, response: ServerResponse) => void;
}

export interface Liar {
  readonly url: string;
  readonly spkiSHA256: string;
  /** From now on, until the next one. */
  tell(...lies: Lie[]): void;
  /** Requests that were answered with a lie. */
  readonly told: number;
  stop(): Promise<void>;
}

export async function startLiar(port: number, gatewayUrl: string): Promise<Liar> {
  const pair = await selfSigned(['127.0.0.1'], new Date());
  const to = new URL(gatewayUrl);
  let lies: readonly Lie[] = [];
  let told = 0;
  /** Kinds whose watch was broken off as too old, so that everything is listed anew, with the lie in it. */
  let expired = new Set<string>();
  const server: Server = https.createServer({ ...pair, ALPNProtocols: ['http/1.1'] }, (request, response) => {
    const what = `${request.method} ${request.url}`;
    const lie = lies.find(({ about }) => about.test(what));
    if (lie) told += 1;
    if (lie?.answer) return lie.answer(request, response);
    const watched = /\/kube\/(\w+)\?.*watch=true/.exec(what)?.[1];
    if (watched && lies.length > 0 && !expired.has(watched)) {
      expired.add(watched);
      const object = {
        kind: 'Status',
        apiVersion: 'v1',
        status: 'Failure',
        code: 410,
        reason: 'Expired',
        message: 'too old',
      };
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(`${JSON.stringify({ type: 'ERROR', object })}\n`);
      return;
    }
    const onward = https.request(
      {
        ...{ host: to.hostname, port: to.port, rejectUnauthorized: false, agent: false },
        ...{ method: request.method, path: request.url, headers: { ...request.headers, host: to.host } },
      },
      (answer) => {
        const isWatch = /[?&]watch=true/.test(request.url ?? '');
        if (lie === undefined || (isWatch ? lie.lines === undefined : lie.change === undefined)) {
          response.writeHead(answer.statusCode ?? 502, answer.headers);
          answer.pipe(response);
          return;
        }
        const { 'content-length': _, ...headers } = answer.headers;
        if (isWatch) {
          response.writeHead(answer.statusCode ?? 502, headers);
          response.flushHeaders();
          let rest = '';
          answer.on('data', (chunk: Buffer) => {
            const parts = (rest + chunk.toString('utf8')).split('\n');
            rest = parts.pop() ?? '';
            for (const part of parts)
              for (const event of lie.lines?.(JSON.parse(part) as Json) ?? [])
                response.write(typeof event === 'string' ? event : `${JSON.stringify(event)}\n`);
          });
          answer.once('close', () => response.end());
          return;
        }
        const chunks: Buffer[] = [];
        answer.on('data', (chunk: Buffer) => chunks.push(chunk));
        answer.once('end', async () => {
          const text = Buffer.concat(chunks).toString('utf8');
          const changed =
            answer.statusCode === 200 && text !== ''
              ? JSON.stringify(await lie.change?.(JSON.parse(text) as Json))
              : text;
          response.writeHead(answer.statusCode ?? 502, headers).end(changed);
        });
      },
    );
    onward.on('error', () => response.destroy());
    response.once('close', () => onward.destroy());
    request.pipe(onward);
  });
  server.on('clientError', (_error, socket) => socket.destroy());
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
  return {
    url: `https://127.0.0.1:${port}`,
    spkiSHA256: spkiSha256(pair.cert),
    tell(...next) {
      lies = next;
      told = 0;
      expired = new Set();
      // What was agreed on before the lie ends: watches above all.
      server.closeAllConnections();
    },
    get told() {
      return told;
    },
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
