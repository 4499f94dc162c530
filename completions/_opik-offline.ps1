
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'opik-offline' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $command = @(
        'opik-offline'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'opik-offline' {
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Use no colours, as with NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('agent', 'agent', [CompletionResultType]::ParameterValue, 'Run the agent: pass on, store while the server is away, deliver afterwards')
            [CompletionResult]::new('healthcheck', 'healthcheck', [CompletionResultType]::ParameterValue, 'Check the configuration, the Opik server, access to it, the store and its disk')
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'Show the connection, the agent and what is stored')
            [CompletionResult]::new('replay', 'replay', [CompletionResultType]::ParameterValue, 'Deliver stored messages to the Opik server')
            [CompletionResult]::new('inspect', 'inspect', [CompletionResultType]::ParameterValue, 'List stored messages, or show one whole')
            [CompletionResult]::new('purge', 'purge', [CompletionResultType]::ParameterValue, 'Delete stored messages for good')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'opik-offline;agent' {
            [CompletionResult]::new('--listen', '--listen', [CompletionResultType]::ParameterName, 'Listen on this address [default: 127.0.0.1:6745]')
            [CompletionResult]::new('--allowed-hosts', '--allowed-hosts', [CompletionResultType]::ParameterName, 'Answer to these hosts too, and take requests of web pages of these origins [default: none]')
            [CompletionResult]::new('--batch-size', '--batch-size', [CompletionResultType]::ParameterName, 'Replay this many messages, then pause; unset, replay starts at 50 and speeds up while the server keeps up')
            [CompletionResult]::new('--delay', '--delay', [CompletionResultType]::ParameterName, 'Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up')
            [CompletionResult]::new('--max-size', '--max-size', [CompletionResultType]::ParameterName, 'Let the store take this much space at most [default: 10GiB]')
            [CompletionResult]::new('--free-disk-reserve', '--free-disk-reserve', [CompletionResultType]::ParameterName, 'Leave this much space on the disk; unset, a tenth of a small one [default: 256MiB]')
            [CompletionResult]::new('--when-full', '--when-full', [CompletionResultType]::ParameterName, 'When the store is full: refuse or drop_oldest [default: refuse]')
            [CompletionResult]::new('--rejected-share', '--rejected-share', [CompletionResultType]::ParameterName, 'When room is needed, drop the oldest rejected messages beyond this share of the store, in percent [default: 25]')
            [CompletionResult]::new('--rejected-export', '--rejected-export', [CompletionResultType]::ParameterName, 'Write rejected messages to this folder before they are dropped to make room, as JSON lines [default: none]')
            [CompletionResult]::new('--max-age', '--max-age', [CompletionResultType]::ParameterName, 'Drop messages that wait longer than this [default: none]')
            [CompletionResult]::new('--max-attempts', '--max-attempts', [CompletionResultType]::ParameterName, 'Reject a message that failed alone this many times [default: 10]')
            [CompletionResult]::new('--max-body-size', '--max-body-size', [CompletionResultType]::ParameterName, 'Keep no body larger than this as sent: it streams through [default: 500MiB]')
            [CompletionResult]::new('--max-inflated-size', '--max-inflated-size', [CompletionResultType]::ParameterName, 'Keep no body larger than this when decoded: it streams through [default: 512MiB]')
            [CompletionResult]::new('--max-attachment-size', '--max-attachment-size', [CompletionResultType]::ParameterName, 'Refuse files of attachments larger than this [default: 5GiB]')
            [CompletionResult]::new('--max-connections', '--max-connections', [CompletionResultType]::ParameterName, 'Take this many connections of clients at once; past it the longest idle one is closed [default: 4096]')
            [CompletionResult]::new('--memory-budget', '--memory-budget', [CompletionResultType]::ParameterName, 'Let bodies take this much memory, of clients and of replay; unset, 256MiB, and less in a small container')
            [CompletionResult]::new('--client-timeout', '--client-timeout', [CompletionResultType]::ParameterName, 'Close the connection of a client that is silent for this long [default: 2m]')
            [CompletionResult]::new('--client-cert-file', '--client-cert-file', [CompletionResultType]::ParameterName, 'Show this certificate to the server (mTLS), a PEM file')
            [CompletionResult]::new('--client-key-file', '--client-key-file', [CompletionResultType]::ParameterName, 'The private key of that certificate, where it is not in the same file')
            [CompletionResult]::new('--upstream-headers-file', '--upstream-headers-file', [CompletionResultType]::ParameterName, 'Send the headers in this file to the server, one `Name: value` a line')
            [CompletionResult]::new('--connect-timeout', '--connect-timeout', [CompletionResultType]::ParameterName, 'Give up connecting to the server after this long [default: 5s]')
            [CompletionResult]::new('--forward-timeout', '--forward-timeout', [CompletionResultType]::ParameterName, 'Store a write that the server has not answered after this long [default: 1m35s]')
            [CompletionResult]::new('--retry-interval', '--retry-interval', [CompletionResultType]::ParameterName, 'Try a held lane again after this long: no valid key, a redirect, a server that fails at everything [default: 10s]')
            [CompletionResult]::new('--shutdown-timeout', '--shutdown-timeout', [CompletionResultType]::ParameterName, 'Let requests in progress finish for this long when stopping [default: 10s]')
            [CompletionResult]::new('--flush-timeout', '--flush-timeout', [CompletionResultType]::ParameterName, 'Deliver for this long after the command has ended [default: 30s]')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'Write log lines as text or json [default: text]')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--insecure-listen', '--insecure-listen', [CompletionResultType]::ParameterName, 'Listen beyond this machine without asking for an intake token')
            [CompletionResult]::new('--adopt-orphans', '--adopt-orphans', [CompletionResultType]::ParameterName, 'Take in what killed Python processes leave, and deliver it')
            [CompletionResult]::new('--rekey-refused', '--rekey-refused', [CompletionResultType]::ParameterName, 'Give messages whose key the server refuses (401, 403) the configured key, for the same server and workspace')
            [CompletionResult]::new('--all-otlp-traces', '--all-otlp-traces', [CompletionResultType]::ParameterName, 'Lead all OTLP traces of the command to Opik, not only those that went there before')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Use no colours, as with NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;healthcheck' {
            [CompletionResult]::new('--wait', '--wait', [CompletionResultType]::ParameterName, 'Keep checking for this long until all is well')
            [CompletionResult]::new('--project-name', '--project-name', [CompletionResultType]::ParameterName, 'The project that the smoke test writes to')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--full', '--full', [CompletionResultType]::ParameterName, 'Read the store page by page even when it is large, which takes some 20 seconds a gigabyte')
            [CompletionResult]::new('--smoke-test', '--smoke-test', [CompletionResultType]::ParameterName, 'Write a trace with a span and an image to the server and read it back, when all else is well')
            [CompletionResult]::new('--reseal', '--reseal', [CompletionResultType]::ParameterName, 'Keep all that is stored as the settings ask for, encrypted or not, and leave nothing of before in the files; asks no server')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Use no colours, as with NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;status' {
            [CompletionResult]::new('--fail-if-backlog', '--fail-if-backlog', [CompletionResultType]::ParameterName, 'Exit with 4 when more than this many messages wait')
            [CompletionResult]::new('--fail-if-older-than', '--fail-if-older-than', [CompletionResultType]::ParameterName, 'Exit with 4 when a message has been waiting longer than this')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--watch', '--watch', [CompletionResultType]::ParameterName, 'Show it again every 2 seconds until interrupted')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Use no colours, as with NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;replay' {
            [CompletionResult]::new('--batch-size', '--batch-size', [CompletionResultType]::ParameterName, 'Replay this many messages, then pause')
            [CompletionResult]::new('--delay', '--delay', [CompletionResultType]::ParameterName, 'Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up')
            [CompletionResult]::new('--limit', '--limit', [CompletionResultType]::ParameterName, 'Stop after this many messages')
            [CompletionResult]::new('--timeout', '--timeout', [CompletionResultType]::ParameterName, 'Stop after this long, and keep trying until then')
            [CompletionResult]::new('--verify-timeout', '--verify-timeout', [CompletionResultType]::ParameterName, 'Ask again for what the server does not show yet, until this long after the delivery')
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'Take in what a Python process left, then deliver')
            [CompletionResult]::new('--owner', '--owner', [CompletionResultType]::ParameterName, 'As root, take in the files of this user, a name or a number')
            [CompletionResult]::new('--attachments-from', '--attachments-from', [CompletionResultType]::ParameterName, 'Also send attachments whose files are below this folder')
            [CompletionResult]::new('--status', '--status', [CompletionResultType]::ParameterName, 'Only messages with this status (may be given more than once)')
            [CompletionResult]::new('--type', '--type', [CompletionResultType]::ParameterName, 'Only messages of this type, such as OtlpTraces')
            [CompletionResult]::new('--workspace', '--workspace', [CompletionResultType]::ParameterName, 'Only messages of this workspace')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Only messages for this server, by the URL that `status` shows')
            [CompletionResult]::new('--project', '--project', [CompletionResultType]::ParameterName, 'Only messages that name this project')
            [CompletionResult]::new('--id', '--id', [CompletionResultType]::ParameterName, 'Only the message with this id')
            [CompletionResult]::new('--trace', '--trace', [CompletionResultType]::ParameterName, 'Only messages about this trace or its spans')
            [CompletionResult]::new('--older-than', '--older-than', [CompletionResultType]::ParameterName, 'Only messages older than this, such as 2h or 7d')
            [CompletionResult]::new('--newer-than', '--newer-than', [CompletionResultType]::ParameterName, 'Only messages accepted within this time, such as 15m')
            [CompletionResult]::new('--readdress', '--readdress', [CompletionResultType]::ParameterName, 'Deliver what was accepted for this server to --upstream instead')
            [CompletionResult]::new('--lane', '--lane', [CompletionResultType]::ParameterName, 'With --rekey or --readdress: only this lane, by the number that a --dry-run of it shows')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--verify', '--verify', [CompletionResultType]::ParameterName, 'Read back what was delivered, report what is missing')
            [CompletionResult]::new('--remove-source', '--remove-source', [CompletionResultType]::ParameterName, 'Delete each file of --from, and the SDK''s temporary copies of attachments, once every message in it is stored')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Show what would be replayed, and send nothing')
            [CompletionResult]::new('--rejected', '--rejected', [CompletionResultType]::ParameterName, 'Only rejected messages (--status rejected)')
            [CompletionResult]::new('--rekey', '--rekey', [CompletionResultType]::ParameterName, 'Give lanes whose key the server refuses the configured key')
            [CompletionResult]::new('-y', '-y', [CompletionResultType]::ParameterName, 'With --rekey or --readdress: do not ask')
            [CompletionResult]::new('--yes', '--yes', [CompletionResultType]::ParameterName, 'With --rekey or --readdress: do not ask')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Use no colours, as with NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;inspect' {
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'List what a Python process left in this file')
            [CompletionResult]::new('--owner', '--owner', [CompletionResultType]::ParameterName, 'As root, look into a file of this user, a name or a number')
            [CompletionResult]::new('--limit', '--limit', [CompletionResultType]::ParameterName, 'List this many messages at most; 0 lists all [default: 50]')
            [CompletionResult]::new('--status', '--status', [CompletionResultType]::ParameterName, 'Only messages with this status (may be given more than once)')
            [CompletionResult]::new('--type', '--type', [CompletionResultType]::ParameterName, 'Only messages of this type, such as OtlpTraces')
            [CompletionResult]::new('--workspace', '--workspace', [CompletionResultType]::ParameterName, 'Only messages of this workspace')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Only messages for this server, by the URL that `status` shows')
            [CompletionResult]::new('--project', '--project', [CompletionResultType]::ParameterName, 'Only messages that name this project')
            [CompletionResult]::new('--id', '--id', [CompletionResultType]::ParameterName, 'Only the message with this id')
            [CompletionResult]::new('--trace', '--trace', [CompletionResultType]::ParameterName, 'Only messages about this trace or its spans')
            [CompletionResult]::new('--older-than', '--older-than', [CompletionResultType]::ParameterName, 'Only messages older than this, such as 2h or 7d')
            [CompletionResult]::new('--newer-than', '--newer-than', [CompletionResultType]::ParameterName, 'Only messages accepted within this time, such as 15m')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--newest', '--newest', [CompletionResultType]::ParameterName, 'List the newest first')
            [CompletionResult]::new('--follow', '--follow', [CompletionResultType]::ParameterName, 'Show messages as they are stored, from now on')
            [CompletionResult]::new('--no-pager', '--no-pager', [CompletionResultType]::ParameterName, 'Show a long result on a terminal without a pager')
            [CompletionResult]::new('--rejected', '--rejected', [CompletionResultType]::ParameterName, 'Only rejected messages (--status rejected)')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Use no colours, as with NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;purge' {
            [CompletionResult]::new('--status', '--status', [CompletionResultType]::ParameterName, 'Only messages with this status (may be given more than once)')
            [CompletionResult]::new('--type', '--type', [CompletionResultType]::ParameterName, 'Only messages of this type, such as OtlpTraces')
            [CompletionResult]::new('--workspace', '--workspace', [CompletionResultType]::ParameterName, 'Only messages of this workspace')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Only messages for this server, by the URL that `status` shows')
            [CompletionResult]::new('--project', '--project', [CompletionResultType]::ParameterName, 'Only messages that name this project')
            [CompletionResult]::new('--id', '--id', [CompletionResultType]::ParameterName, 'Only the message with this id')
            [CompletionResult]::new('--trace', '--trace', [CompletionResultType]::ParameterName, 'Only messages about this trace or its spans')
            [CompletionResult]::new('--older-than', '--older-than', [CompletionResultType]::ParameterName, 'Only messages older than this, such as 2h or 7d')
            [CompletionResult]::new('--newer-than', '--newer-than', [CompletionResultType]::ParameterName, 'Only messages accepted within this time, such as 15m')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Show what would be deleted, and delete nothing')
            [CompletionResult]::new('-y', '-y', [CompletionResultType]::ParameterName, 'Delete without asking')
            [CompletionResult]::new('--yes', '--yes', [CompletionResultType]::ParameterName, 'Delete without asking')
            [CompletionResult]::new('--rejected', '--rejected', [CompletionResultType]::ParameterName, 'Only rejected messages (--status rejected)')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say only what was asked for, and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Use no colours, as with NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;help' {
            [CompletionResult]::new('agent', 'agent', [CompletionResultType]::ParameterValue, 'Run the agent: pass on, store while the server is away, deliver afterwards')
            [CompletionResult]::new('healthcheck', 'healthcheck', [CompletionResultType]::ParameterValue, 'Check the configuration, the Opik server, access to it, the store and its disk')
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'Show the connection, the agent and what is stored')
            [CompletionResult]::new('replay', 'replay', [CompletionResultType]::ParameterValue, 'Deliver stored messages to the Opik server')
            [CompletionResult]::new('inspect', 'inspect', [CompletionResultType]::ParameterValue, 'List stored messages, or show one whole')
            [CompletionResult]::new('purge', 'purge', [CompletionResultType]::ParameterValue, 'Delete stored messages for good')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'opik-offline;help;agent' {
            break
        }
        'opik-offline;help;healthcheck' {
            break
        }
        'opik-offline;help;status' {
            break
        }
        'opik-offline;help;replay' {
            break
        }
        'opik-offline;help;inspect' {
            break
        }
        'opik-offline;help;purge' {
            break
        }
        'opik-offline;help;help' {
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
