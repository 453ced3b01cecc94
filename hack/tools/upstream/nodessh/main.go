// Command nodessh is the ssh server of a kind node while the tests run that stop a kubelet "over ssh": the nodes are
// containers and have none. It takes one key, runs commands as root with bash, and does nothing else of ssh.
//
//	nodessh keygen FILE       writes a new private key to FILE and the public one to FILE.pub
//	nodessh serve ADDRESS     takes the public key that is the first line of its standard input, and ends with that
package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"

	"golang.org/x/crypto/ssh"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("nodessh: ")
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "keygen":
		err = keygen(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2], os.Stdin)
	default:
		err = errors.New("usage: nodessh keygen FILE | nodessh serve ADDRESS")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func keygen(file string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	return os.WriteFile(file+".pub", ssh.MarshalAuthorizedKey(key), 0o600)
}

func serve(address string, authorized io.Reader) error {
	in := bufio.NewReader(authorized)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	allowed, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), allowed.Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	_, host, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(host)
	if err != nil {
		return err
	}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() { // whoever started it has gone
		_, _ = io.Copy(io.Discard, in)
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		go connection(c, config)
	}
}

func connection(c net.Conn, config *ssh.ServerConfig) {
	defer c.Close()
	_, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		log.Print(err)
		return
	}
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		if ch.ChannelType() != "session" {
			_ = ch.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		channel, requests, err := ch.Accept()
		if err != nil {
			return
		}
		go session(channel, requests)
	}
}

func session(ch ssh.Channel, requests <-chan *ssh.Request) {
	defer ch.Close()
	for r := range requests {
		if r.Type != "exec" {
			_ = r.Reply(false, nil)
			continue
		}
		var command struct{ Text string }
		if err := ssh.Unmarshal(r.Payload, &command); err != nil {
			_ = r.Reply(false, nil)
			return
		}
		_ = r.Reply(true, nil)
		// Upstream knows that there is no sudo by bash's words.
		cmd := exec.Command("bash", "-c", command.Text)
		cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
		status := struct{ Code uint32 }{}
		var exit *exec.ExitError
		if err := cmd.Run(); errors.As(err, &exit) {
			status.Code = uint32(exit.ExitCode())
		} else if err != nil {
			status.Code = 127
		}
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(status))
		return
	}
}
