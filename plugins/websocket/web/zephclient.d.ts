// Types of zephclient.js: a client of a zephserver for browsers. What travels is in docs/protocol.md.

export = Zephclient;
export as namespace Zephclient;

/**
 * A connection to a zephserver. It connects when it is made, says hello to its room, and connects again
 * by itself whenever the connection is lost: after a random wait of at most 250 ms, which doubles with
 * each failure up to 15 s.
 */
declare class Zephclient {
    /**
     * @param session the token that says who this is; left out: nobody in particular
     * @param url where the WebSocket is; default: `/ws` of the page's host, `wss:` where the page is https
     * @param room the room to go to; default: the page's address
     * @param messageCallback gets every message as it came, with the socket as `this`, in place of
     *   subscribers, notice and error listeners. Promises of `request` are kept as well.
     * @param options listeners that hear everything from the first moment on
     */
    constructor(
        session?: string | null,
        url?: string | null,
        room?: string | null,
        messageCallback?: ((this: WebSocket, event: MessageEvent<string>) => void) | null,
        options?: Zephclient.Options,
    );

    /** The socket of now; another one after each reconnect. */
    readonly webSocket: WebSocket;
    /** Where it stands. */
    readonly state: Zephclient.State;
    /** Where the WebSocket is. */
    readonly url: string;
    /** The room that this client is in, or will be once it is connected. Changed by `join`. */
    readonly room: string;
    /** The token of now; changed by `authenticate`. */
    readonly session: string | null | undefined;

    /**
     * Asks for a task. Its answer, if there is one, comes to the subscribers of the task.
     *
     * Without a connection it waits for one, together with at most 1000 messages.
     * @throws {Zephclient.ZephError} `busy` beyond those, `unavailable` once the state is `closed`
     */
    send(task: string, data?: unknown): void;

    /**
     * Asks for a task and waits for its answer.
     *
     * The promise takes the first answer; it does not come to subscribers. Further answers of the same task
     * do. It is rejected with a `ZephError`: with the code of the server's error, `unavailable` when the
     * connection is lost after it was sent, `timeout`, `busy` and `unavailable` as in `send`, or `refused`
     * when the server closes because of the token. Without a connection it waits for one.
     */
    request<Answer = unknown>(task: string, data?: unknown, options?: Zephclient.RequestOptions): Promise<Answer>;

    /**
     * Calls back for every answer and push of a task.
     * @returns a function that unsubscribes
     */
    subscribe<Data = any>(task: string, callback: Zephclient.Subscriber<Data>): () => void;

    /** Ends a subscription. */
    unsubscribe<Data = any>(task: string, callback: Zephclient.Subscriber<Data>): void;

    /**
     * Calls back for every error that no promise takes: what the server could not do, and `refused` when it
     * closed because of the token.
     * @returns a function that removes the callback
     */
    onerror(callback: Zephclient.ErrorListener): () => void;

    /**
     * Calls back whenever the state changes.
     * @returns a function that removes the callback
     */
    onstate(callback: Zephclient.StateListener): () => void;

    /**
     * Calls back for every notice of the room: who came, who left, who is there.
     * @returns a function that removes the callback
     */
    onnotice(callback: Zephclient.NoticeListener): () => void;

    /**
     * Goes to another room, and stays there over reconnects. With the same room it says hello again, which
     * brings a new token to the server. Messages that wait are said in the room that they were meant for.
     */
    join(room: string): void;

    /**
     * Another token, for the next message and the next hello; null: nobody in particular. It connects again
     * where the server had closed because of the old one.
     */
    authenticate(token?: string | null): void;

    /** Ends it for good. What waits is dropped; requests are rejected with `unavailable`. */
    close(): void;
}

declare namespace Zephclient {
    /**
     * `connecting`; `open`, the hello is said; `waiting`, for the next attempt; `closed`, by `close()` or
     * because the session is over (close code 4401).
     */
    type State = 'connecting' | 'open' | 'waiting' | 'closed';

    /** The codes of docs/protocol.md; a later server may have more. */
    type Code =
        | 'invalid' | 'refused' | 'not_found' | 'unavailable' | 'busy' | 'timeout' | 'cancelled' | 'panicked'
        | 'internal' | 'incompatible' | (string & {});

    /** What went wrong; the text is the `message`. */
    class ZephError extends Error {
        constructor(code: Code, text: string, task?: string, id?: unknown);
        readonly name: 'ZephError';
        readonly code: Code;
        /** The task that it is about; undefined where there is none. */
        readonly task?: string;
        /** The id of the request that it answers; undefined where it had none. */
        readonly id?: unknown;
    }

    /** An answer or a push of a task. */
    interface TaskFrame<Data = any> {
        task: string;
        data: Data;
        /** Only in further answers to a `request`, and in those that come too late. */
        id?: unknown;
    }

    /** A notice of the room. */
    type Notice =
        | { msgtype: 'join' | 'leave'; username: string; data: string }
        | { msgtype: 'user_list'; data: string[] };

    type Subscriber<Data = any> = (frame: TaskFrame<Data>) => void;
    type ErrorListener = (error: ZephError) => void;
    /** `wait`: milliseconds until the next attempt, with the state `waiting`. */
    type StateListener = (state: State, wait?: number) => void;
    type NoticeListener = (notice: Notice) => void;

    interface Options {
        onerror?: ErrorListener;
        onstate?: StateListener;
        onnotice?: NoticeListener;
    }

    interface RequestOptions {
        /** Milliseconds; default 30000. Infinity: as long as the connection. */
        timeout?: number;
    }
}
