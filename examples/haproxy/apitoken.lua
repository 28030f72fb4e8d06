-- HAProxy asks a server about the token of a request (examples/node, GET /verify).
--
--     http-request lua.apitoken /verify/report:read
--     http-request deny deny_status 503 unless { var(txn.apitoken_admitted) -m bool }
--
-- The request ends here if its token is refused, or if nobody answers.  The second
-- line is necessary: HAProxy goes on with a request if Lua fails.

local server = os.getenv('VERIFY')

core.register_action('apitoken', { 'http-req' }, function(txn, question)
	local headers = { ['x-forwarded-for'] = { txn.f:src() } }
	local sent = txn.http:req_get_headers()['authorization']
	if sent then
		headers['authorization'] = {}
		for i = 0, #sent do
			headers['authorization'][i + 1] = sent[i]
		end
	end
	local answer = core.httpclient():get{ url = server .. question, headers = headers, timeout = 10000 }
	local function answered(name)
		return answer.headers and answer.headers[name] and answer.headers[name][0]
	end

	if answer.status == 200 then
		for _, name in ipairs({ 'x-apitoken-id', 'x-apitoken-user', 'x-apitoken-organization' }) do
			if answered(name) then
				txn.http:req_set_header(name, answered(name))
			end
		end
		txn:set_var('txn.apitoken_admitted', true)
		return
	end

	local reply = txn:reply()
	local refused = answer.status == 401 or answer.status == 403 or answer.status == 429
	reply:set_status(refused and answer.status or 503)
	for _, name in ipairs({ 'www-authenticate', 'retry-after' }) do
		if answered(name) then
			reply:add_header(name, answered(name))
		end
	end
	txn:done(reply)
end, 1)
