// What the type check of the page (tests/browser/types) knows in addition to the compiler: newer features of browsers,
// and the answers of the API.

// The compiler (4.8) has no static methods of AbortSignal, and they cannot be added to it.
interface Window {
  AbortSignal: typeof AbortSignal & {
    timeout(milliseconds: number): AbortSignal;
    any(signals: Iterable<AbortSignal>): AbortSignal;
  };
}

interface Array<T> {
  findLast(predicate: (value: T, index: number, array: T[]) => unknown): T | undefined;
}

interface Highlight {}
declare var Highlight: { prototype: Highlight; new (...initialRanges: AbstractRange[]): Highlight };
interface HighlightRegistry {
  set(key: string, value: Highlight): this;
}
declare namespace CSS {
  var highlights: HighlightRegistry;
}

/** The JSON of chat.v1, as far as the page reads it. proto/chat/v1 defines it. 64-bit numbers are strings, and fields
 * with their default value are absent. */
declare namespace Api {
  interface Failure {
    code?: string;
    message?: string;
    details?: { debug?: { reason?: string; retryDelay?: string; fieldViolations?: Violation[] } }[];
  }
  interface Violation {
    field: string;
    description: string;
  }

  interface ReadHeader {
    revision?: string;
    ageMs?: string;
  }
  interface Message {
    messageId: string;
    conversationId: string;
    seq: string;
    sender: string;
    body?: string;
    timeMs?: string;
    deleted?: boolean;
    clientMessageId?: string;
  }
  interface Member {
    username: string;
    deleted?: boolean;
    deliveredSeq?: string;
    readSeq?: string;
  }
  /** The counters of a conversation. */
  interface Counters {
    conversationId?: string;
    lastSeq?: string;
    unreadCount?: string;
    members?: Member[];
  }
  interface Partner extends Counters {
    username: string;
    deleted?: boolean;
    lastMessage?: Message;
  }
  interface Partners {
    partners?: Partner[];
    nextPageToken?: string;
    header?: ReadHeader;
  }
  interface Page extends Counters {
    messages?: Message[];
    hasMore?: boolean;
    header?: ReadHeader;
  }
  interface Account {
    username: string;
    deleted?: boolean;
  }
  interface Accounts {
    accounts?: Account[];
    nextPageToken?: string;
  }
  interface Sent {
    messageId: string;
    conversationId: string;
    seq: string;
    revision?: string;
    timeMs?: string;
    repeated?: boolean;
  }
  interface Marked {
    revision?: string;
    unreadCount?: string;
  }
  interface Session {
    sessionId: string;
    createdMs: string;
    usedMs?: string;
    current?: boolean;
  }

  interface Receipt {
    conversationId: string;
    member: string;
    deliveredSeq?: string;
    readSeq?: string;
  }
  interface Deletion {
    conversationId: string;
    seqs: string[];
    forEveryone?: boolean;
  }
  interface AccountDeleted {
    conversationId: string;
    member: string;
  }
  /** An event of the stream. At most one of the fields apart from the revision is present. */
  interface Event {
    revision?: string;
    message?: { message: Message; members: string[] };
    receipt?: Receipt;
    deletion?: Deletion;
    accountDeleted?: AccountDeleted;
  }
  /** A line of the stream. */
  type Line = Event & { error?: Failure };

  interface Node {
    name: string;
    webAddress?: string;
    role?: string;
    healthy?: boolean;
    lagEntries?: string;
  }
  interface Cluster {
    nodes?: Node[];
    term?: string;
    revision?: string;
    answeredBy?: string;
    failuresTolerated?: number;
  }

  /** The answers of ChatService, by method. */
  interface Answers {
    AcknowledgeDelivery: {};
    ChangePassword: {};
    CreateAccount: {};
    DeleteAccount: {};
    DeleteMessages: { revision?: string; deletedCount?: number };
    GetPrivacy: { readReceipts?: boolean; sessionActivity?: boolean };
    GetRegistration: { open?: boolean; invitationNeeded?: boolean };
    ListAccounts: Accounts;
    ListChatPartners: Partners;
    ListSessions: { sessions?: Session[] };
    /** Without a token, if the session is in a cookie. */
    Login: { token?: string };
    Logout: {};
    MarkRead: Marked;
    ReadConversation: Page;
    RevokeSession: {};
    SendMessage: Sent;
    SetPrivacy: {};
  }
  /** The answers of all services, by service and method. */
  type AllAnswers = { [M in keyof Answers as `ChatService/${M}`]: Answers[M] } & {
    "ClusterService/GetLeader": {};
    "ClusterService/ListNodes": Cluster;
  };
}
