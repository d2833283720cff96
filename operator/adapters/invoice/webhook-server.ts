/**
 * Where the card processor's webhook comes in, and nothing else. It faces the internet: one path, one method, small bodies, an
 * answer that tells a stranger nothing. 2xx means done, for good; anything else makes the processor send the event again.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { CardEvent } from '../../core/invoice/account.ts';
import type { Log } from '../../engine/types.ts';
import { BadEvent, BadSignature, type CardProcessor } from './card-processor.ts';

export interface WebhookServerOptions {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  readonly path: string;
  readonly processor: CardProcessor;
  /** Stores it; when this throws, the processor is asked to send it again. */
  readonly take: (event: CardEvent) => Promise<void>;
  readonly log: Log;
}

/** Events are a few kilobytes. */
const mostBytes = 256 * 1024;

export async function startWebhookServer(options: WebhookServerOptions) {
  const { processor, log } = options;
  const server = createServer({ requestTimeout: 10_000, headersTimeout: 5_000 }, (request, response) => {
    answer(request, response).catch((error: Error) => {
      log.warn({ error: error.message }, 'an event of the card processor could not be taken; it will come again');
      reply(response, 500);
    });
  });
  server.maxConnections = 64;

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.url !== options.path) return reply(response, 404);
    if (request.method !== 'POST') return reply(response, 405);
    const body = await read(request);
    if (body === undefined) return reply(response, 413);
    const header = request.headers[processor.header];
    let event: CardEvent | undefined;
    try {
      event = processor.read(body, typeof header === 'string' ? header : undefined);
    } catch (error) {
      if (!(error instanceof BadSignature || error instanceof BadEvent)) throw error;
      log.warn({ error: error.message }, 'a call of the webhook was refused');
      return reply(response, 400);
    }
    if (event) await options.take(event);
    reply(response, 200);
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port, options.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function reply(response: ServerResponse, code: number): void {
  if (response.headersSent) return;
  response.writeHead(code, { 'content-type': 'text/plain', 'content-length': 0, connection: 'close' }).end();
}

/** Undefined: more than is read. */
async function read(request: IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += (chunk as Buffer).length;
    if (size > mostBytes) return undefined;
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks);
}
