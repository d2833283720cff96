/** One watch, from its opening to its end: lines of JSON, each an event. */
import type { IncomingMessage } from 'node:http';
import type { Clock } from './clock.ts';
import { ApiError, isRecord, statusOf, UnknownOutcomeError } from './errors.ts';
import { readBody } from './http.ts';
import { readLines } from './lines.ts';
import { withoutManagedFields } from './managed-fields.ts';
import { collectionPath, withQuery } from './paths.ts';
import type { Cluster, KubeObject, Resource } from './types.ts';

export interface WatchEvent {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK';
  readonly object: KubeObject;
}

export interface WatchRequest {
  readonly cluster: Cluster;
  readonly resource: Resource;
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  readonly resourceVersion: string;
  /** When the server is asked to end it. */
  readonly timeoutSeconds: number;
  /** How long a live server may say nothing. After that the connection counts as dead, as nobody tells of a half-open one. */
  readonly quietSeconds: number;
  readonly clock: Clock;
  /** The server watches from now on: whatever changes after this is told. */
  readonly onOpen?: () => void;
}

const longestLineBytes = 16 * 1024 * 1024;

/**
 * Calls `onEvent` for each event, whose object is without managedFields. Resolves when the server ended the watch (`closed`), or said nothing for too long
 * (`quiet`); both may go on from the last resourceVersion. Throws ApiError for a refusal, ERROR events included, and
 * UnknownOutcomeError for a broken stream or a line that is not JSON.
 */
export async function watchOnce(
  request: WatchRequest,
  onEvent: (event: WatchEvent) => void,
  signal: AbortSignal,
): Promise<'closed' | 'quiet'> {
  const { cluster, resource, clock } = request;
  const path = withQuery(collectionPath(resource, request.namespace), {
    watch: 'true',
    allowWatchBookmarks: 'true',
    resourceVersion: request.resourceVersion,
    timeoutSeconds: request.timeoutSeconds,
    labelSelector: request.labelSelector,
    fieldSelector: request.fieldSelector,
  });
  const stop = new AbortController();
  const onStop = () => stop.abort(signal.reason);
  if (signal.aborted) onStop();
  signal.addEventListener('abort', onStop, { once: true });
  let quiet = false;
  let cancel: (() => void) | undefined;
  const listen = () => {
    cancel?.();
    cancel = clock.setTimeout(() => {
      quiet = true;
      stop.abort(new Error('quiet'));
    }, request.quietSeconds * 1000);
  };
  try {
    listen();
    const response = await cluster.raw(
      { method: 'GET', path, headers: { Accept: 'application/json' } },
      undefined,
      stop.signal,
    );
    if (response.statusCode !== 200) throw await refusal(response, `watch ${resource.plural}`);
    request.onOpen?.();
    // A last line that was cut off is repeated by the server from the last resourceVersion.
    const reading = { what: `watch ${resource.plural}`, longestBytes: longestLineBytes, onData: listen };
    await readLines(response, reading, (line) => {
      const event = parseEvent(line, resource);
      if (event) onEvent(event);
    });
    return 'closed';
  } catch (error) {
    if (quiet && !signal.aborted) return 'quiet';
    throw error;
  } finally {
    cancel?.();
    signal.removeEventListener('abort', onStop);
    stop.abort(new Error('over'));
  }
}

async function refusal(response: IncomingMessage, what: string): Promise<ApiError> {
  const bytes = await readBody(response, what, { maxBytes: 1024 * 1024, timeoutSeconds: 10 });
  const text = bytes.toString('utf8');
  let body: unknown = text;
  try {
    body = JSON.parse(text);
  } catch {
    // Not Kubernetes' own words, then: a proxy's.
  }
  return new ApiError(statusOf(response.statusCode ?? 0, body, response.headers['retry-after']), what);
}

function parseEvent(line: string, resource: Resource): WatchEvent | undefined {
  if (line.trim() === '') return undefined;
  let event: unknown;
  try {
    event = JSON.parse(withoutManagedFields(line));
  } catch {
    throw new UnknownOutcomeError(`watch ${resource.plural}: an event is not JSON`);
  }
  if (!isRecord(event) || !isRecord(event.object))
    throw new UnknownOutcomeError(`watch ${resource.plural}: not an event`);
  if (event.type === 'ERROR') {
    const code = typeof event.object.code === 'number' ? event.object.code : 500;
    throw new ApiError(statusOf(code, event.object), `watch ${resource.plural}`);
  }
  const { metadata } = event.object;
  const known =
    event.type === 'ADDED' || event.type === 'MODIFIED' || event.type === 'DELETED' || event.type === 'BOOKMARK';
  if (!known || !isRecord(metadata)) throw new UnknownOutcomeError(`watch ${resource.plural}: not an event`);
  if (event.type !== 'BOOKMARK' && typeof metadata.name !== 'string')
    throw new UnknownOutcomeError(`watch ${resource.plural}: an object without a name`);
  return event as unknown as WatchEvent;
}
