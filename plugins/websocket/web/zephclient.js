/* The browser's side of a zephserver: see docs/protocol.md, and zephclient.d.ts for every method and type. */
(() => {
    'use strict';

    const PING_EVERY = 45000;
    const FIRST_WAIT = 250;
    const LONGEST_WAIT = 15000;
    const QUEUE = 1000;
    const SESSION_OVER = 4401;

    /** What went wrong: the server's error frames, and what the client finds by itself. */
    class ZephError extends Error {
        constructor(code, text, task, id) {
            super(text);
            this.name = 'ZephError';
            this.code = code;
            this.task = task;
            this.id = id;
        }
    }

    /** Calls all listeners. One that throws is reported as an uncaught error, and stops no other. */
    function tell(listeners, ...words) {
        for (const listener of [...listeners]) {
            try {
                listener(...words);
            } catch (error) {
                setTimeout(() => { throw error; });
            }
        }
    }

    function listen(listeners, callback) {
        listeners.add(callback);
        return () => { listeners.delete(callback); };
    }

    /** A frame as an object, empty where it is none. */
    function parsed(text) {
        try {
            return Object(JSON.parse(text));
        } catch {
            return {};
        }
    }

    class Zephclient {
        static ZephError = ZephError;

        #raw;
        #subscribers = new Map();
        #listeners = { error: new Set(), state: new Set(), notice: new Set() };
        /** Messages that wait for a connection. */
        #queue = [];
        /** Requests without an answer, by id. */
        #pending = new Map();
        #lastId = 0;
        #attempts = 0;
        #retryTimer;
        #pingTimer;
        /** The token of the last hello. */
        #tokenSaid;
        #isEnded = false;

        constructor(session, url, room, messageCallback, options = {}) {
            this.session = session;
            this.url = url || `${location.protocol === 'https:' ? 'wss:' : 'ws:'}//${location.host}/ws`;
            this.room = room || location.href;
            this.#raw = messageCallback;
            for (const kind of ['error', 'state', 'notice']) {
                if (options[`on${kind}`]) this.#listeners[kind].add(options[`on${kind}`]);
            }
            this.#connect();
        }

        /** Sends a task's data; nothing is answered to the caller. */
        send(task, data) {
            this.#post({ task, data, room: this.room, date: Date.now() });
        }

        /** Sends a task's data, and promises the data of its answer. */
        request(task, data, { timeout = 30000 } = {}) {
            return new Promise((resolve, reject) => {
                const id = ++this.#lastId;
                this.#post({ task, data, room: this.room, date: Date.now(), id });
                const giveUp = () => {
                    this.#pending.delete(id);
                    // What has not been sent yet is not to happen after its caller was told of a failure.
                    this.#queue = this.#queue.filter(message => message.id !== id);
                    reject(new ZephError('timeout', `${task} was not answered in ${timeout} ms`, task, id));
                };
                const timer = Number.isFinite(timeout) ? setTimeout(giveUp, timeout) : undefined;
                this.#pending.set(id, { task, timer, resolve, reject });
            });
        }

        subscribe(task, callback) {
            if (!this.#subscribers.has(task)) this.#subscribers.set(task, new Set());
            this.#subscribers.get(task).add(callback);
            return () => this.unsubscribe(task, callback);
        }

        unsubscribe(task, callback) {
            const callbacks = this.#subscribers.get(task);
            callbacks?.delete(callback);
            if (callbacks?.size === 0) this.#subscribers.delete(task);
        }

        onerror(callback) { return listen(this.#listeners.error, callback); }
        onstate(callback) { return listen(this.#listeners.state, callback); }
        onnotice(callback) { return listen(this.#listeners.notice, callback); }

        /** Goes to another room; with the same room, says hello again. */
        join(room) {
            if (typeof room !== 'string' || room === '') throw new ZephError('invalid', 'a room is a text');
            this.room = room;
            if (this.#canWrite()) this.#hello(room);
        }

        /** Another token, for the next message and the next hello. */
        authenticate(token) {
            this.session = token;
            if (this.state === 'closed' && !this.#isEnded) this.#connect();
        }

        /** Ends it for good. */
        close() {
            if (this.#isEnded) return;
            this.#isEnded = true;
            const socket = this.webSocket;
            this.#finish(new ZephError('unavailable', 'the connection was closed by this side'));
            socket.close(1000);
        }

        #connect() {
            const socket = new WebSocket(this.url);
            this.webSocket = socket;
            // What comes late, from a socket that was given up, is nobody's.
            const whenMine = handle => event => {
                if (socket === this.webSocket && this.state !== 'closed') handle(event);
            };
            socket.onopen = whenMine(() => this.#opened());
            socket.onmessage = whenMine(event => this.#hear(event));
            socket.onclose = whenMine(event => this.#lost(event));
            this.#become('connecting');
        }

        #opened() {
            this.#attempts = 0;
            this.#pingTimer = setInterval(() => {
                if (this.#canWrite()) this.send('TaskPing', {});
            }, PING_EVERY);
            const queue = this.#queue;
            this.#queue = [];
            // Each message is said in the room that it was meant for, even if the room was changed since.
            let room = queue.length > 0 ? queue[0].room : this.room;
            this.#hello(room);
            for (const message of queue) {
                if (message.room !== room) this.#hello(room = message.room);
                this.#write(message);
            }
            if (room !== this.room) this.#hello(this.room);
            this.#become('open');
        }

        #lost(event) {
            clearInterval(this.#pingTimer);
            if (event.code === SESSION_OVER && this.session === this.#tokenSaid) {
                const text = event.reason || 'the session is over';
                const error = new ZephError('refused', text);
                this.#finish(error);
                return tell(this.#listeners.error, error);
            }
            this.#rejectAll(new ZephError('unavailable', 'the connection was lost'), this.#queue);
            // Full jitter: many clients of a server that comes back do not all come at once.
            const wait = Math.random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#attempts);
            this.#attempts += 1;
            this.#retryTimer = setTimeout(() => this.#connect(), wait);
            this.#become('waiting', wait);
        }

        /** The end: of all, or until there is another token. Nothing is kept for whoever comes then. */
        #finish(error) {
            clearInterval(this.#pingTimer);
            clearTimeout(this.#retryTimer);
            this.#queue = [];
            this.#rejectAll(error, []);
            this.#become('closed');
        }

        /** Rejects the requests that are under way. Those that wait to be sent still may succeed. */
        #rejectAll({ code, message }, waiting) {
            const kept = new Set(waiting.map(({ id }) => id));
            for (const [id, { task }] of this.#pending) {
                if (!kept.has(id)) this.#settle(id)?.reject(new ZephError(code, message, task, id));
            }
        }

        /** Takes a request off the list of those without an answer. */
        #settle(id) {
            const request = this.#pending.get(id);
            clearTimeout(request?.timer);
            this.#pending.delete(id);
            return request;
        }

        #become(state, wait) {
            if (state === this.state) return;
            this.state = state;
            tell(this.#listeners.state, state, wait);
        }

        #canWrite() {
            return this.state === 'open' && this.webSocket.readyState === WebSocket.OPEN;
        }

        #post(message) {
            if (this.state === 'closed') throw new ZephError('unavailable', 'the connection is closed', message.task);
            if (this.#canWrite()) return this.#write(message);
            if (this.#queue.length >= QUEUE) {
                throw new ZephError('busy', `${QUEUE} messages wait for a connection already`, message.task);
            }
            // A copy: what the caller changes later was not said.
            this.#queue.push(JSON.parse(JSON.stringify(message)));
        }

        #hello(room) {
            this.#write({ room });
        }

        #write(message) {
            this.#tokenSaid = this.session;
            this.webSocket.send(JSON.stringify({ ...message, session_id: this.session ?? undefined }));
        }

        #hear(event) {
            const frame = parsed(event.data);
            const isTask = 'task' in frame;
            const error = frame.msgtype === 'error' && !isTask
                ? new ZephError(frame.code, frame.text, frame.name, frame.id) : undefined;
            const request = this.#settle(frame.id);
            if (error) request?.reject(error);
            else request?.resolve(frame.data);
            if (this.#raw) return this.#raw.call(this.webSocket, event);
            if (request) return;
            if (isTask) return tell(this.#subscribers.get(frame.task) ?? [], frame);
            // A ping makes traffic, also where the server has no such task.
            if (error?.task === 'TaskPing' && error.code === 'not_found') return;
            if (error) return tell(this.#listeners.error, error);
            if (frame.msgtype) tell(this.#listeners.notice, frame);
        }
    }

    globalThis.Zephclient = Zephclient;
    if (typeof module === 'object' && module.exports) module.exports = Zephclient;
})();
