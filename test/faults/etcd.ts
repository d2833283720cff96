/** An etcd that takes no writes: the alarm that it raises itself when its quota is used up (reads and deletions go on). */
import { readFileSync } from 'node:fs';
import { request } from 'node:https';
import type { Plane } from '../../operator/sandbox/clusters/plane.ts';

/** Raises the alarm; the answer takes it back. */
export async function denyWrites(plane: Plane, alarm: 'NOSPACE'): Promise<() => Promise<void>> {
  const { header } = await ask<{ header: { member_id: string } }>(plane, '/v3/maintenance/status', {});
  const set = (action: 'ACTIVATE' | 'DEACTIVATE') =>
    ask(plane, '/v3/maintenance/alarm', { action, memberID: header.member_id, alarm });
  await set('ACTIVATE');
  return async () => void (await set('DEACTIVATE'));
}

function ask<T>({ etcd }: Plane, path: string, body: object): Promise<T> {
  return new Promise((resolve, reject) => {
    const call = request(
      new URL(path, etcd.url),
      {
        method: 'POST',
        ca: readFileSync(etcd.caFile),
        cert: readFileSync(etcd.certificateFile),
        key: readFileSync(etcd.privateKeyFile),
        headers: { 'content-type': 'application/json' },
        timeout: 10_000,
      },
      (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (chunk: string) => {
          text += chunk;
        });
        response.once('end', () =>
          response.statusCode === 200
            ? resolve(JSON.parse(text) as T)
            : reject(new Error(`etcd answered ${response.statusCode} to ${path}: ${text.slice(0, 200)}`)),
        );
      },
    );
    call.once('timeout', () => call.destroy(new Error(`etcd did not answer ${path}`)));
    call.once('error', reject);
    call.end(JSON.stringify(body));
  });
}
