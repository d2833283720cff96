/**
 * A WebSocket as a stream of bytes, at either end: a connection that every proxy and ingress lets through. Text messages come
 * first, few and short, for the two ends to agree; then binary ones, whose borders mean nothing.
 *
 * Source: RFC 6455, https://www.rfc-editor.org/rfc/rfc6455. No extensions are spoken.
 */
import { createHash, randomBytes, randomFillSync } from 'node:crypto';
import http, { type IncomingMessage } from 'node:http';
import { Duplex } from 'node:stream';
import type { Timing } from './timing.ts';

/** What the other end says in words has at most so many bytes. */
const maxTextBytes = 8192;
/** Messages of text that nobody has asked for yet. */
const maxTexts = 4;
/** Answers to pings that wait to be sent: a flood of them must not grow here. RFC 6455 lets the last one be answered alone. */
const maxUnsentBytes = 64 * 1024;
const maxFrameBytes = 2 ** 31;
const bufferBytes = 1 << 20;

const acceptOf = (key: string): string =>
  createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');

const text = 1;
const binary = 2;
const close = 8;
const ping = 9;
const pong = 10;

export class WebSocketError extends Error {
  override readonly name = 'WebSocketError';
}

type Done = (error?: Error | null) => void;

export class WebSocketStream extends Duplex {
  /** Of the connection, as `net.Socket` has it. */
  bytesRead = 0;
  readonly #socket: Duplex;
  /** A client masks what it sends, and is sent nothing that is masked. */
  readonly #client: boolean;
  #header: Buffer | undefined;
  /** Of the frame that is being read. */
  #left = 0;
  #opcode = 0;
  #final = true;
  #mask: Buffer | undefined;
  #offset = 0;
  /** Of the message that frames are parts of. */
  #message = 0;
  #gathered: Buffer[] = [];
  #gatheredBytes = 0;
  readonly #texts: string[] = [];
  #waiting: ((said: string | Error) => void) | undefined;
  #closing = false;

  constructor(socket: Duplex, role: 'client' | 'server', head: Buffer) {
    super({ allowHalfOpen: false, readableHighWaterMark: bufferBytes, writableHighWaterMark: bufferBytes });
    this.#socket = socket;
    this.#client = role === 'client';
    // Whoever uses it listens, too; until then, or after, nobody may.
    this.on('error', () => undefined);
    socket.on('error', (error) => this.destroy(error));
    const gone = (how: string) => () => this.destroy(this.#closing ? undefined : new WebSocketError(how));
    socket.on('close', gone('the connection was broken off'));
    socket.on('end', gone('the connection ended without saying so'));
    if (head.length > 0) socket.unshift(head);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
  }

  /** One message of text to the other end. Before any bytes of the stream. */
  say(message: string): void {
    this.#send(text, Buffer.from(message));
  }

  /** The next message of text. Rejects when none comes in time, or bytes come instead. */
  heard(withinSeconds: number, clock: Timing): Promise<string> {
    const ready = this.#texts.shift();
    if (ready !== undefined) return Promise.resolve(ready);
    if (this.destroyed) return Promise.reject(this.errored ?? new WebSocketError('the connection has ended'));
    return new Promise((resolve, reject) => {
      const cancel = clock.setTimeout(
        () => this.#waiting?.(new WebSocketError(`nothing was said within ${withinSeconds} s`)),
        withinSeconds * 1000,
      );
      this.#waiting = (said) => {
        this.#waiting = undefined;
        cancel();
        if (typeof said === 'string') resolve(said);
        else reject(said);
      };
    });
  }

  override _read(): void {
    this.#socket.resume();
  }

  override _write(chunk: Buffer, _: BufferEncoding, done: Done): void {
    this.#sendAll([chunk], chunk.length, done);
  }

  override _writev(chunks: { chunk: Buffer }[], done: Done): void {
    let bytes = 0;
    for (const { chunk } of chunks) bytes += chunk.length;
    this.#sendAll(
      chunks.map(({ chunk }) => chunk),
      bytes,
      done,
    );
  }

  override _final(done: Done): void {
    this.#sayClose();
    this.#socket.end();
    done();
  }

  override _destroy(error: Error | null, done: Done): void {
    this.#waiting?.(error ?? new WebSocketError('the connection has ended'));
    this.#socket.destroy();
    done(error);
  }

  #sayClose(): void {
    if (this.#closing) return;
    this.#closing = true;
    this.#send(close, Buffer.from([0x03, 0xe8]));
  }

  #send(opcode: number, payload: Buffer): void {
    if (this.#socket.destroyed || !this.#socket.writable) return;
    const header = this.#headerOf(opcode, payload.length);
    const frame = Buffer.concat([header, payload]);
    if (this.#client) mask(frame.subarray(header.length), header.subarray(-4), 0);
    this.#socket.write(frame);
  }

  #sendAll(chunks: readonly Buffer[], bytes: number, done: Done): void {
    const header = this.#headerOf(binary, bytes);
    if (this.#client) {
      const frame = Buffer.allocUnsafe(header.length + bytes);
      header.copy(frame);
      let at = header.length;
      for (const chunk of chunks) at += chunk.copy(frame, at);
      mask(frame.subarray(header.length), header.subarray(-4), 0);
      this.#socket.write(frame, done);
      return;
    }
    this.#socket.cork();
    this.#socket.write(header);
    chunks.forEach((chunk, at) => void this.#socket.write(chunk, at === chunks.length - 1 ? done : undefined));
    this.#socket.uncork();
  }

  #headerOf(opcode: number, bytes: number): Buffer {
    const lengthBytes = bytes < 126 ? 0 : bytes < 65_536 ? 2 : 8;
    const header = Buffer.alloc(2 + lengthBytes + (this.#client ? 4 : 0));
    header[0] = 0x80 | opcode;
    header[1] = (this.#client ? 0x80 : 0) | (lengthBytes === 0 ? bytes : lengthBytes === 2 ? 126 : 127);
    if (lengthBytes === 2) header.writeUInt16BE(bytes, 2);
    if (lengthBytes === 8) header.writeBigUInt64BE(BigInt(bytes), 2);
    if (this.#client) randomFillSync(header, header.length - 4);
    return header;
  }

  #take(chunk: Buffer): void {
    this.bytesRead += chunk.length;
    let at = 0;
    let room = true;
    while (at < chunk.length) {
      if (this.#left === 0) {
        const used = this.#begin(chunk.subarray(at));
        if (used === undefined) return;
        at += used;
        // A frame of no bytes is complete at once.
        if (this.#left === 0 && !this.#header && !this.#end()) return;
        continue;
      }
      const bytes = Math.min(this.#left, chunk.length - at);
      const piece = chunk.subarray(at, at + bytes);
      if (this.#mask) mask(piece, this.#mask, this.#offset);
      this.#offset += bytes;
      this.#left -= bytes;
      at += bytes;
      if (this.#opcode === binary) room = this.push(piece) && room;
      else {
        this.#gathered.push(piece);
        this.#gatheredBytes += bytes;
      }
      if (this.#left === 0 && !this.#end()) return;
    }
    if (!room) this.#socket.pause();
  }

  /** Reads a frame's header; answers how many of these bytes it took, or undefined when the other end broke the rules. */
  #begin(given: Buffer): number | undefined {
    const had = this.#header?.length ?? 0;
    const bytes = this.#header ? Buffer.concat([this.#header, given.subarray(0, 14)]) : given;
    const short = bytes.length < 2;
    const length = short ? 0 : bytes[1]! & 0x7f;
    const masked = !short && (bytes[1]! & 0x80) !== 0;
    const size = 2 + (length === 126 ? 2 : length === 127 ? 8 : 0) + (masked ? 4 : 0);
    if (short || bytes.length < size) {
      this.#header = Buffer.from(bytes);
      return given.length;
    }
    this.#header = undefined;
    const first = bytes[0]!;
    const long = length === 127 ? bytes.readBigUInt64BE(2) : BigInt(length === 126 ? bytes.readUInt16BE(2) : length);
    const opcode = first & 0x0f;
    const final = (first & 0x80) !== 0;
    const control = opcode >= 8;
    const wrong =
      (first & 0x70) !== 0
        ? 'uses an extension that nobody agreed on'
        : masked === this.#client
          ? 'is masked where it must not be, or the reverse'
          : long > maxFrameBytes
            ? 'is too long'
            : control && (!final || length > 125)
              ? 'is a control frame of a kind that there is not'
              : ![0, text, binary, close, ping, pong].includes(opcode)
                ? 'is of a kind that there is not'
                : !control && (opcode === 0) !== (this.#message !== 0)
                  ? 'is out of order'
                  : opcode === text && this.#texts.length >= maxTexts
                    ? 'says more than anybody asked for'
                    : undefined;
    if (wrong !== undefined) return this.#fail(`a frame ${wrong}`);
    this.#left = Number(long);
    if (!control && opcode !== 0) this.#message = opcode;
    this.#opcode = control ? opcode : this.#message;
    this.#final = final;
    this.#mask = masked ? Buffer.from(bytes.subarray(size - 4, size)) : undefined;
    this.#offset = 0;
    if (this.#opcode === text && this.#gatheredBytes + this.#left > maxTextBytes)
      return this.#fail('a message of text is too long');
    return size - had;
  }

  /** The frame is read. False: nothing after it is. */
  #end(): boolean {
    if (this.#opcode >= 8) {
      // A control frame may stand between the parts of a message of text; those are few, so it is kept apart simply by its size.
      const payload = Buffer.concat(this.#gathered.splice(this.#controlFrom()));
      this.#gatheredBytes -= payload.length;
      if (this.#opcode === ping && this.#socket.writableLength < maxUnsentBytes) this.#send(pong, payload);
      if (this.#opcode !== close) return true;
      this.#sayClose();
      this.push(null);
      this.#socket.end();
      return false;
    }
    if (!this.#final) {
      this.#partsOfText = this.#gathered.length;
      return true;
    }
    const message = this.#message;
    this.#message = 0;
    if (message === text) {
      const said = Buffer.concat(this.#gathered.splice(0)).toString('utf8');
      this.#gatheredBytes = 0;
      this.#partsOfText = 0;
      if (this.#waiting) this.#waiting(said);
      else this.#texts.push(said);
    }
    return true;
  }

  #partsOfText = 0;
  #controlFrom(): number {
    return this.#message === text ? this.#partsOfText : 0;
  }

  #fail(why: string): undefined {
    this.destroy(new WebSocketError(why));
    return undefined;
  }
}

/** In place; `offset`: of these bytes in the frame. Four at a time, since everything that a link carries passes here. */
export function mask(bytes: Buffer, key: Buffer, offset: number): void {
  const turned = (by: number) => key[(offset + by) & 3]!;
  let at = 0;
  while (at < bytes.length && ((bytes.byteOffset + at) & 3) !== 0) {
    bytes[at]! ^= turned(at);
    at++;
  }
  const words = (bytes.length - at) >> 2;
  if (words > 0) {
    const word = Buffer.from([turned(at), turned(at + 1), turned(at + 2), turned(at + 3)]);
    const pattern = new Int32Array(word.buffer.slice(word.byteOffset, word.byteOffset + 4))[0]!;
    const view = new Int32Array(bytes.buffer, bytes.byteOffset + at, words);
    for (let i = 0; i < words; i++) view[i]! ^= pattern;
    at += words * 4;
  }
  for (; at < bytes.length; at++) bytes[at]! ^= turned(at);
}

/** Answers the upgrade, or tells why not and answers undefined. */
export function acceptWebSocket(
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  protocol: string,
): WebSocketStream | undefined {
  const key = request.headers['sec-websocket-key'] ?? '';
  const offered = (request.headers['sec-websocket-protocol'] ?? '').split(',').map((one) => one.trim());
  const wrong =
    request.method !== 'GET' || request.headers.upgrade?.toLowerCase() !== 'websocket'
      ? 'this path takes an upgrade to WebSocket'
      : request.headers['sec-websocket-version'] !== '13' || !/^[A-Za-z0-9+/]{22}==$/.test(key)
        ? 'this is no WebSocket of version 13'
        : !offered.includes(protocol)
          ? `this path speaks ${protocol}`
          : undefined;
  if (wrong !== undefined) {
    refuseUpgrade(socket, 400, wrong);
    return undefined;
  }
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ${acceptOf(key)}\r\nsec-websocket-protocol: ${protocol}\r\n\r\n`,
  );
  bare(socket);
  return new WebSocketStream(socket, 'server', head);
}

export function refuseUpgrade(socket: Duplex, status: number, why: string): void {
  if (socket.destroyed || !socket.writable) return;
  socket.end(
    `HTTP/1.1 ${status} ${http.STATUS_CODES[status] ?? 'Refused'}\r\ncontent-type: text/plain\r\ncontent-length: ${Buffer.byteLength(why) + 1}\r\nconnection: close\r\n\r\n${why}\n`,
    () => socket.destroy(),
  );
}

/** Asks for the upgrade on a connection that stands. Rejects when it is refused, with what was said. */
export function openWebSocket(
  socket: Duplex,
  {
    host,
    path,
    protocol,
    withinSeconds,
    clock,
  }: {
    readonly host: string;
    readonly path: string;
    readonly protocol: string;
    readonly withinSeconds: number;
    readonly clock: Timing;
  },
): Promise<WebSocketStream> {
  return new Promise((resolve, reject) => {
    const key = randomBytes(16).toString('base64');
    const request = http.request({
      createConnection: () => socket,
      method: 'GET',
      path,
      headers: {
        Host: host,
        Connection: 'Upgrade',
        Upgrade: 'websocket',
        'Sec-WebSocket-Version': '13',
        'Sec-WebSocket-Key': key,
        'Sec-WebSocket-Protocol': protocol,
      },
    });
    const cancel = clock.setTimeout(
      () => fail(new WebSocketError(`no answer within ${withinSeconds} s`)),
      withinSeconds * 1000,
    );
    const fail = (error: Error) => {
      cancel();
      request.destroy();
      socket.destroy();
      reject(error);
    };
    request.on('error', fail);
    request.once('response', (response) => {
      let said = '';
      response.setEncoding('utf8');
      response.on('data', (part: string) => {
        said = (said + part).slice(0, 512);
      });
      const done = () =>
        fail(new WebSocketError(`answered ${response.statusCode}: ${said.trim() || 'no WebSocket there'}`));
      response.once('end', done);
      response.once('error', done);
      response.once('close', done);
    });
    request.once('upgrade', (response, upgraded, head) => {
      cancel();
      if (
        response.headers['sec-websocket-accept'] !== acceptOf(key) ||
        response.headers['sec-websocket-protocol'] !== protocol
      )
        return fail(new WebSocketError('the answer is not that of a WebSocket of ours'));
      bare(upgraded);
      resolve(new WebSocketStream(upgraded, 'client', head));
    });
    request.end();
  });
}

/** No time-out of HTTP holds for it any more, and nothing waits for more to come before it is sent. */
function bare(socket: Duplex): void {
  const idle = socket as Partial<{ setTimeout(ms: number): void; setNoDelay(on: boolean): void }>;
  idle.setTimeout?.(0);
  idle.setNoDelay?.(true);
}
