/**
 * A few plain requests to an API server, with a client certificate: what starting a cluster and testing it need, without
 * loading a whole client library in front of the first progress line.
 */
import { Agent, request } from 'node:https';

export interface ApiAccess {
  readonly server: string;
  readonly caPem: string;
  readonly certificatePem: string;
  readonly privateKeyPem: string;
}

export interface ApiResponse {
  readonly status: number;
  readonly text: string;
  /** The body as JSON; throws when it is none. */
  json<T = Record<string, unknown>>(): T;
}

export interface ApiClient {
  request(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<ApiResponse>;
  /** The body of a 2xx answer; any other answer throws with what the API server said. */
  call<T = Record<string, unknown>>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T>;
  close(): void;
}

const MAX_BODY_BYTES = 32 << 20;
const TIMEOUT_MS = 15_000;

/** `PATCH` bodies are strategic merge patches, except an array (JSON patch). */
export function createApiClient({ server, caPem, certificatePem, privateKeyPem }: ApiAccess): ApiClient {
  const agent = new Agent({ ca: caPem, cert: certificatePem, key: privateKeyPem, keepAlive: true, maxSockets: 8 });
  const client: ApiClient = {
    request(method, path, body, signal) {
      return new Promise((resolve, reject) => {
        const payload = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
        const patch = Array.isArray(body) ? 'application/json-patch+json' : 'application/strategic-merge-patch+json';
        const call = request(
          new URL(path, server),
          {
            agent,
            method,
            timeout: TIMEOUT_MS,
            signal,
            headers: payload && {
              'content-type': method === 'PATCH' ? patch : 'application/json',
              'content-length': payload.length,
            },
          },
          (response) => {
            const chunks: Buffer[] = [];
            let size = 0;
            response.on('data', (chunk: Buffer) => {
              size += chunk.length;
              if (size > MAX_BODY_BYTES)
                call.destroy(new Error(`${method} ${path}: answer larger than ${MAX_BODY_BYTES} bytes`));
              else chunks.push(chunk);
            });
            response.once('error', reject);
            response.once('end', () => {
              const text = Buffer.concat(chunks).toString('utf8');
              resolve({ status: response.statusCode ?? 0, text, json: <T>() => JSON.parse(text) as T });
            });
          },
        );
        call.once('timeout', () =>
          call.destroy(new Error(`${method} ${path}: no answer within ${TIMEOUT_MS / 1000} s`)),
        );
        call.once('error', reject);
        call.end(payload);
      });
    },
    async call<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
      const response = await client.request(method, path, body, signal);
      if (response.status >= 300) throw new Error(`${method} ${path}: ${response.status} ${messageOf(response)}`);
      return response.json<T>();
    },
    close: () => agent.destroy(),
  };
  return client;
}

function messageOf(response: ApiResponse): string {
  try {
    return response.json<{ message?: string }>().message ?? response.text.slice(0, 500);
  } catch {
    return response.text.slice(0, 500);
  }
}
