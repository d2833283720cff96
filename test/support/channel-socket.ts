/**
 * A WebSocket caller of exec, attach and port-forward, byte by byte: the protocol is chosen by the test, and what ends it is
 * told as it was. Channels as Kubernetes numbers them: 0 input, 1 output, 2 errors, 3 the status, 4 the terminal's size; 255
 * closes one (v5).
 */
import { createHash, randomBytes } from 'node:crypto';
import https from 'node:https';
import type { Duplex } from 'node:stream';
import { load } from 'js-yaml';

export interface Target {
  readonly server: string;
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export function targetOf(kubeconfig: string): Target {
  const { clusters, users } = load(kubeconfig) as {
    clusters: { cluster: { server: string; 'certificate-authority-data': string } }[];
    users: { user: { 'client-certificate-data': string; 'client-key-data': string } }[];
  };
  const text = (base64: string) => Buffer.from(base64, 'base64').toString('utf8');
  const { cluster } = clusters[0]!;
  const { user } = users[0]!;
  return {
    server: cluster.server,
    ca: text(cluster['certificate-authority-data']),
    cert: text(user['client-certificate-data']),
    key: text(user['client-key-data']),
  };
}

export type ChannelProtocol = 'v4.channel.k8s.io' | 'v5.channel.k8s.io';

/** How it ended: by a close frame with this code, or without a word. */
export type End = { readonly code: number } | 'cut';

export interface ChannelSocket {
  readonly protocol: string;
  /** All that came on a channel. */
  received(channel: number): Buffer;
  send(channel: number, data: string | Buffer): void;
  /** v5: no more input. */
  closeChannel(channel: number): void;
  /** Ends without a word, as a process that is killed. */
  destroy(): void;
  readonly ended: Promise<End>;
  /** The exit code that the status tells; undefined when none came. */
  exitCode(): number | undefined;
}

const opcodes = { binary: 2, close: 8, ping: 9, pong: 10 } as const;
const longestFrame = 1 << 24;

export function openChannels(to: Target, path: string, protocol: ChannelProtocol): Promise<ChannelSocket> {
  const key = randomBytes(16).toString('base64');
  return new Promise((resolve, reject) => {
    const { server, ...tls } = to;
    const request = https.get(`${server}${path}`, {
      ...tls,
      agent: false,
      headers: {
        Connection: 'Upgrade',
        Upgrade: 'websocket',
        'Sec-WebSocket-Version': '13',
        'Sec-WebSocket-Key': key,
        'Sec-WebSocket-Protocol': protocol,
      },
    });
    request.once('error', reject);
    request.once('response', (response) => {
      let body = '';
      response.on('data', (chunk) => {
        body += chunk;
      });
      response.once('end', () => reject(new Error(`${response.statusCode}: ${body}`)));
    });
    request.once('upgrade', (response, socket, head) => {
      const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
      if (response.headers['sec-websocket-accept'] !== accept) {
        socket.destroy();
        reject(new Error('the WebSocket key was not answered'));
        return;
      }
      resolve(channelsOver(socket, head, String(response.headers['sec-websocket-protocol'])));
    });
  });
}

function channelsOver(socket: Duplex, head: Buffer, protocol: string): ChannelSocket {
  const channels = new Map<number, Buffer[]>();
  let waiting = head;
  const { promise: ended, resolve: end } = Promise.withResolvers<End>();
  const frame = (opcode: number, payload: Buffer) => {
    const mask = randomBytes(4);
    const long = payload.length > 65_535 ? 8 : payload.length > 125 ? 2 : 0;
    const start = Buffer.alloc(2 + long);
    start[0] = 0x80 | opcode;
    start[1] = 0x80 | (long === 8 ? 127 : long === 2 ? 126 : payload.length);
    if (long === 2) start.writeUInt16BE(payload.length, 2);
    if (long === 8) start.writeBigUInt64BE(BigInt(payload.length), 2);
    if (!socket.destroyed) socket.write(Buffer.concat([start, mask, payload.map((byte, i) => byte ^ mask[i % 4]!)]));
  };
  const take = () => {
    for (;;) {
      if (waiting.length < 2) return;
      const opcode = waiting[0]! & 0x0f;
      const short = waiting[1]! & 0x7f;
      const long = short === 127 ? 8 : short === 126 ? 2 : 0;
      if (waiting.length < 2 + long) return;
      const size = long === 8 ? Number(waiting.readBigUInt64BE(2)) : long === 2 ? waiting.readUInt16BE(2) : short;
      if (size > longestFrame) throw new Error('a frame of unreasonable length');
      if (waiting.length < 2 + long + size) return;
      const payload = waiting.subarray(2 + long, 2 + long + size);
      waiting = waiting.subarray(2 + long + size);
      if (opcode === opcodes.close) {
        end({ code: payload.length >= 2 ? payload.readUInt16BE(0) : 1005 });
        socket.end();
      } else if (opcode === opcodes.ping) frame(opcodes.pong, payload);
      else if (opcode !== opcodes.pong && payload.length > 0) {
        const channel = payload[0]!;
        channels.set(channel, [...(channels.get(channel) ?? []), Buffer.from(payload.subarray(1))]);
      }
    }
  };
  socket.on('data', (chunk: Buffer) => {
    waiting = Buffer.concat([waiting, chunk]);
    take();
  });
  socket.on('error', () => socket.destroy());
  socket.once('close', () => end('cut'));
  socket.once('end', () => socket.end());
  take();
  const received = (channel: number) => Buffer.concat(channels.get(channel) ?? []);
  return {
    protocol,
    received,
    send: (channel, data) => frame(opcodes.binary, Buffer.concat([Buffer.from([channel]), Buffer.from(data)])),
    closeChannel: (channel) => frame(opcodes.binary, Buffer.from([255, channel])),
    destroy: () => socket.destroy(),
    ended,
    exitCode() {
      const text = received(3).toString('utf8');
      if (text === '') return undefined;
      const status = JSON.parse(text) as {
        status: string;
        details?: { causes?: { reason: string; message: string }[] };
      };
      if (status.status === 'Success') return 0;
      return Number(status.details?.causes?.find((cause) => cause.reason === 'ExitCode')?.message ?? Number.NaN);
    },
  };
}
