/**
 * What operators of the program look at: /metrics, /livez, /readyz. Plain HTTP, on a port of its own that faces the
 * cluster only. Each check has a name, and a failing one says why; `?verbose` lists the others too.
 */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';
import type { Log } from '../../engine/types.ts';
import { redactText } from './redact.ts';

/** By name: true, or the reason why not; false where the name says it all. */
export type Checks = Readonly<Record<string, boolean | string>>;

export interface OperationsServerOptions {
  /** 0: any free one. */
  readonly port: number;
  readonly host?: string;
  readonly registry: Registry;
  /** Failing means: start me again. So not for anything that a restart does not mend. */
  readonly live: () => Checks | Promise<Checks>;
  /** Failing means: send me nothing now. */
  readonly ready: () => Checks | Promise<Checks>;
  readonly log?: Log;
}

export interface OperationsServer {
  readonly port: number;
  close(): Promise<void>;
}

export async function startOperationsServer(options: OperationsServerOptions): Promise<OperationsServer> {
  const server = createServer({ requestTimeout: 10_000, headersTimeout: 5_000 }, (request, response) => {
    answer(request.method ?? '', request.url ?? '', response).catch((error) => {
      options.log?.error({ error, path: request.url?.split('?', 1)[0] }, 'the operations server failed');
      if (!response.headersSent) respond(response, 500, 'internal error\n');
      else response.destroy();
    });
  });
  server.maxConnections = 64;

  async function answer(method: string, target: string, response: ServerResponse) {
    const [path = '', query = ''] = target.split('?', 2);
    if (method !== 'GET' && method !== 'HEAD') return respond(response, 405, 'only GET\n', { Allow: 'GET, HEAD' });
    if (path === '/metrics') {
      const text = await options.registry.metrics();
      return respond(response, 200, text, { 'Content-Type': options.registry.contentType });
    }
    if (path !== '/livez' && path !== '/readyz') return respond(response, 404, 'try /metrics, /livez, /readyz\n');
    const checks = await (path === '/livez' ? options.live() : options.ready());
    const failing = Object.values(checks).some((check) => check !== true);
    const verbose = failing || new URLSearchParams(query).has('verbose');
    const lines = Object.entries(checks).map(([name, check]) =>
      check === true ? `[+]${name} ok` : `[-]${name} failed${check === false ? '' : `: ${redactText(check)}`}`,
    );
    const end = `${path.slice(1)} check ${failing ? 'failed' : 'passed'}`;
    respond(response, failing ? 503 : 200, verbose ? `${[...lines, end].join('\n')}\n` : 'ok\n');
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      reject(new Error(`the operations server cannot listen on port ${options.port}: ${error.code ?? error.message}`)),
    );
    server.listen(options.port, options.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function respond(response: ServerResponse, code: number, body: string, headers: Record<string, string> = {}) {
  response
    .writeHead(code, { 'Content-Type': 'text/plain; charset=utf-8', 'X-Content-Type-Options': 'nosniff', ...headers })
    .end(body);
}
