// Package control is the wire protocol between the daemon and its clients: the
// CNI plugin, the command line, and anything that speaks HTTP. It has the types
// and the client; package server has the daemon's side.
//
// # Protocol
//
// HTTP/1.1 with JSON bodies over a unix socket in the file system; curl
// --unix-socket is a full client for all that needs no descriptor. The routes
// are the table in server/routes.go; server/openapi.yaml describes them, is served
// by the daemon at /v1/openapi.yaml, and a test holds it against the table and the
// Go types in both directions. Requests are decoded strictly ([DecodeStrict]), and
// replies leniently, so that a newer daemon may say more to an older client.
// Every failure has a stable [Code] and a message for people.
//
// # Descriptors
//
// The TUN and the sockets of published ports travel as SCM_RIGHTS with the
// request's bytes ([Client.Attach], [Client.Publish]). The server's connections
// collect them while they read; the handler of a request that names descriptors
// takes exactly as many as it names, and whatever nobody took is closed when
// the request ends. Requests are therefore not to be pipelined on a connection
// that carries descriptors. A message that the kernel cut (MSG_CTRUNC) poisons
// the request. What the descriptors are is for the daemon to check.
//
// # Life of an attachment
//
// An attach is made on a connection of its own, and until it is committed the
// link belongs to that connection: when it closes, because the client gave up or
// was killed, the daemon's session ends and it undoes the attach. An
// [Attachment] therefore never dials a second time.
//
// # Who may ask
//
// The socket is 0600 in a directory of the daemon's own ([Listen]), and the
// peer's uid must be the daemon's or 0, read by SO_PEERCRED when the connection
// is accepted. The overflow uid is refused: it may be anybody. A client in turn
// refuses a socket that is served by another user before it sends a descriptor.
//
// # The client's HTTP
//
// The plugin is started for every verb of every plugin of a list, and net/http
// with what it needs takes half a millisecond of each start. So the client speaks
// HTTP/1.0 by itself (http.go), one request after the other on a connection.
package control
