package vmdkctl

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

// DocsCommand writes docs/vmdkctl.md; a test keeps that file current.
func (a *app) docsCommand(root *cobra.Command) *cobra.Command {
	var man string
	c := &cobra.Command{
		Use:    "docs",
		Short:  "Write the manual of this program in Markdown, or as man pages",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if man == "" {
				return writeDocs(a.out, root)
			}
			if err := os.MkdirAll(man, 0o755); err != nil {
				return err
			}
			root.DisableAutoGenTag = true // a page is the same whenever it is made
			return doc.GenManTree(root, &doc.GenManHeader{Title: "VMDKCTL", Section: "1", Source: "vmdk-csi", Manual: "vmdkctl", Date: &time.Time{}}, man)
		},
	}
	c.Flags().StringVar(&man, "man", "", "directory for man pages, such as /usr/local/share/man/man1")
	must(c.MarkFlagDirname("man"))
	return c
}

func writeDocs(w io.Writer, root *cobra.Command) error {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- Made by `go run ./cmd/vmdkctl docs`. Do not edit. -->\n\n# %s\n\n%s\n", root.Name(), root.Long)
	section(&b, "Options of every command", root.PersistentFlags())
	b.WriteString("\n## Exit codes\n\n| code | meaning |\n|---|---|\n")
	for _, c := range exitCodes {
		fmt.Fprintf(&b, "| %d | %s |\n", c.code, c.meaning)
	}
	b.WriteString("\nErrors go to stderr as `Error: ...` and, where there is something to do about it, `Remedy: ...`.\n")
	for _, c := range everyCommand(root) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```\n%s\n```\n", c.CommandPath(), text(c), c.UseLine())
		section(&b, "Options", c.LocalNonPersistentFlags())
		if c.Example != "" {
			fmt.Fprintf(&b, "\nExamples:\n\n```\n%s\n```\n", unindent(c.Example))
		}
	}
	b.WriteString("\n## Shell completion and man pages\n\n`source <(vmdkctl completion bash)`; also for zsh, fish and powershell.\n" +
		"`vmdkctl docs --man /usr/local/share/man/man1` writes a man page for each command.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// everyCommand is the commands below root, each before its own.
func everyCommand(root *cobra.Command) (all []*cobra.Command) {
	for _, c := range root.Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		all = append(append(all, c), everyCommand(c)...)
	}
	return all
}

var exitCodes = []struct {
	code    int
	meaning string
}{
	{cli.ExitOK, "done; for `check` and `repair`: the disk is clean"},
	{cli.ExitFailed, "the command could not do its work"},
	{cli.ExitUsage, "the command line is wrong"},
	{cli.ExitDamaged, "the disk is damaged; for `check` and `repair`: errors were found, or are left"},
	{cli.ExitWarned, "`check` and `repair` only: no damage, but something to know about (a live disk, one that was not closed cleanly, something that some program may object to)"},
	{cli.ExitInUse, "the disk is in use: attached, locked or mounted"},
}

func text(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return c.Short + "."
}

func section(b *strings.Builder, title string, flags *pflag.FlagSet) {
	var rows []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		def := f.DefValue
		if def == "" || def == "false" || def == "[]" {
			def = " "
		} else {
			def = " `" + def + "` "
		}
		rows = append(rows, fmt.Sprintf("| %s | %s |%s|", name, strings.ReplaceAll(f.Usage, "|", "\\|"), def))
	})
	if len(rows) > 0 {
		fmt.Fprintf(b, "\n%s:\n\n| option | meaning | default |\n|---|---|---|\n%s\n", title, strings.Join(rows, "\n"))
	}
}

func unindent(s string) string {
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}
