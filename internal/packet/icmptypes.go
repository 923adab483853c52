package packet

// ICMP types (RFC 792, RFC 1122 §3.2.2).
const (
	icmp4EchoReply        uint8 = 0
	icmp4Unreachable      uint8 = 3
	icmp4SourceQuench     uint8 = 4
	icmp4Redirect         uint8 = 5
	icmp4EchoRequest      uint8 = 8
	icmp4TimeExceeded     uint8 = 11
	icmp4ParameterProblem uint8 = 12
)

// ICMPv6 types (RFC 4443, RFC 4861).
const (
	icmp6Unreachable      uint8 = 1
	icmp6TooBig           uint8 = 2
	icmp6TimeExceeded     uint8 = 3
	icmp6ParameterProblem uint8 = 4
	icmp6EchoRequest      uint8 = 128
	icmp6EchoReply        uint8 = 129
	icmp6Redirect         uint8 = 137
)

func echoRequestType(version uint8) uint8 {
	if version == 6 {
		return icmp6EchoRequest
	}
	return icmp4EchoRequest
}

func echoReplyType(version uint8) uint8 {
	if version == 6 {
		return icmp6EchoReply
	}
	return icmp4EchoReply
}
